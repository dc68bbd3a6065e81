"""Spaces and architectures as data: one-to-one with their codes, and clear about what does not fit."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

from engine.errors import UserError
from ofa.cost import cost_of
from ofa.space.arch import Arch, largest, single_arch_space, smallest
from ofa.space.codes import canonical, cross, decode, encode, mutate, sample, sample_codes, thermometer
from ofa.space.published import find_arch
from ofa.space.space import Space, load_space
from ofa.supernet import Supernet
from ofa.trained import start_from

NAMES = sorted(path.name.removesuffix(".yaml") for path in (files("ofa.space") / "spaces").iterdir())


@pytest.fixture(params=NAMES)
def space(request: pytest.FixtureRequest) -> Space:
    return load_space(request.param)


def test_an_unknown_space_is_told_all_names() -> None:
    assert "digits" in NAMES
    with pytest.raises(UserError, match=", ".join(NAMES)):
        load_space("zzzzzzzzzzzz")


def test_codes_and_architectures_are_one_to_one(space: Space) -> None:
    codes = sample_codes(space, 50, np.random.default_rng(0))
    assert np.array_equal(codes, canonical(space, codes))
    for row in codes:
        arch = decode(space, row)
        assert np.array_equal(encode(space, arch), row)
        assert Arch.model_validate_json(arch.model_dump_json()) == arch


def test_operators_stay_in_the_space(space: Space) -> None:
    rng = np.random.default_rng(0)
    codes = sample_codes(space, 200, rng)
    mutants = mutate(space, codes, 0.1, rng)
    children = cross(space, codes, mutants, rng)
    for rows in (mutants, children):
        assert np.array_equal(rows, canonical(space, rows))
        assert (rows <= space.cardinalities).all()
    assert 0 < (mutants != codes).any(1).mean() <= 1
    assert np.array_equal(mutate(space, codes, 0.0, rng), codes)


def test_children_take_every_gene_from_a_parent_that_has_it() -> None:
    space = load_space("ofa_mbv3")
    rng = np.random.default_rng(0)
    a, b = sample_codes(space, 500, rng), sample_codes(space, 500, rng)
    child = cross(space, a, b, rng)
    known = (child == a) | (child == b) | (child == 0)
    assert known.all()


def test_blocks_that_wake_up_are_drawn_evenly() -> None:
    space = load_space("ofa_mbv3")
    rng = np.random.default_rng(0)
    before = np.repeat(encode(space, smallest(space))[None], 20_000, axis=0)
    after = mutate(space, before, 0.3, rng)
    woken = after[:, space.column_index["kernel", 4]]
    shares = np.bincount(woken[woken > 0], minlength=4)[1:] / (woken > 0).sum()
    assert shares == pytest.approx([1 / 3] * 3, abs=0.03)


def test_single_arch_space_is_the_same_network_in_a_space_of_its_own() -> None:
    for name in NAMES:
        space = load_space(name)
        arch = sample(space, np.random.default_rng(2))
        single = single_arch_space(space, arch)
        assert single.size() == 1
        assert cost_of(single, largest(single), 7, 3) == cost_of(space, arch, 7, 3)


def test_the_same_generator_gives_the_same_architectures(space: Space) -> None:
    assert sample(space, np.random.default_rng(3)) == sample(space, np.random.default_rng(3))


def test_every_choice_is_drawn_evenly(tiny: Space) -> None:
    codes = sample_codes(tiny, 4000, np.random.default_rng(0))
    for i, count in enumerate(tiny.cardinalities):
        shares = np.bincount(codes[:, i], minlength=count + 1)[1:] / 4000
        assert shares == pytest.approx(np.full(count, 1 / count), abs=0.04)


def test_size_is_the_number_of_different_architectures(tiny: Space, tmp_path: Path) -> None:
    for space in (tiny, tiny.model_copy(update={"granularity": "block"})):
        space = Space.model_validate(space.model_dump())
        rows = np.unique(sample_codes(space, 60_000, np.random.default_rng(0)), axis=0)
        assert len(rows) == space.size()


def test_size_of_attentive_nas_by_hand() -> None:
    """The paper says 2.94e11; the choices it lists multiply to this."""
    stages = (2 * 2 * 2, 2 * 3 * 2 * 3, 2 * 4 * 2 * 3, 2 * 4 * 2 * 3, 3 * 6 * 2 * 3, 4 * 6 * 2, 2 * 2 * 2)
    assert load_space("attentive_nas").size() == 4 * 2 * 2 * int(np.prod(stages)) == 440301256704


def test_inactive_blocks_are_zero_in_every_encoding() -> None:
    space = load_space("ofa_mbv3")
    arch = smallest(space)
    assert arch.depth == (1, 2, 2, 2, 2, 2)
    assert arch.kernel[1:5] == (3, 3, 0, 0)
    row = encode(space, arch)
    noisy = arch.model_copy(
        update={"kernel": tuple(k or 7 for k in arch.kernel), "expand": tuple(e or 6 for e in arch.expand)}
    )
    assert np.array_equal(encode(space, noisy), row), "what an inactive block would be changes the code"
    assert thermometer(space, row[None]).sum() == (row > 0).sum()
    assert thermometer(space, encode(space, largest(space))[None]).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"resolution": 9}, r"resolution = 9 is not in space 'tiny'; its choices are 8, 12"),
        ({"depth": (1, 3)}, r"depth\[1\] = 3 .* choices are 1, 2"),
        ({"kernel": (3, 4)}, r"kernel\[1\] = 4 .* choices are 3, 5"),
        ({"width": (4, 8, 8)}, "width has 3 entries, but space 'tiny' has 4"),
    ],
)
def test_an_impossible_architecture_is_one_sentence(
    tiny: Space, change: dict[str, object], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        encode(tiny, smallest(tiny).model_copy(update=change))


def test_find_arch(tiny: Space, tmp_path: Path) -> None:
    arch = sample(tiny, np.random.default_rng(1))
    plain, chosen = tmp_path / "a.json", tmp_path / "b.json"
    plain.write_text(arch.model_dump_json())
    chosen.write_text(json.dumps({"arch": arch.model_dump(), "macs": 3}))
    for name in (str(plain), str(chosen), arch.model_dump_json()):
        assert find_arch(tiny, name) == arch
    assert find_arch(tiny, "largest") == largest(tiny)
    for name, said in (
        ("huge", "has no architecture 'huge'"),
        ("{", "not valid JSON"),
        ('{"widht": 3}', "did you mean 'width'"),
    ):
        with pytest.raises(UserError, match=said):
            find_arch(tiny, name)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("resolution: [8, 12]", "resolution: [12, 8]", r"resolution of space 'broken' must list positive"),
        ("stem: {width: [4, 8]", "stem: {width: [8, 4]", r"stem\.width of space 'broken' must list positive"),
        ("width: [8, 16]", "width: [8, 8]", r"stages\[1\]\.width .* ascending order, but lists \(8, 8\)"),
        ("depth: [1, 2]", "depth: [0, 2]", r"stages\[0\]\.depth .* positive choices .* lists \(0, 2\)"),
        ("kernel: [3, 5]", "kernel: [5, 3]", r"stages\[1\]\.kernel .* ascending order, but lists \(5, 3\)"),
        ("kernel: [3, 5]", "kernel: [3, 4]", r"stages\[1\]\.kernel .* odd kernels, but lists \(3, 4\)"),
        ("expand: [2, 3]", "expand: [3, 2]", r"stages\[1\]\.expand .* ascending order, but lists \(3"),
        (
            "expand: [2, 3]",
            "expand: [1, 3]",
            r"stages\[1\]\.expand of space 'broken' mixes 1, .* \(1.0, 3.0\)",
        ),
        ("head: {width: [16, 32]", "head: {width: [32, 16]", r"head\.width of space 'broken' must list"),
        (
            "stem: {width: [4, 8],",
            "stem: {width: [4, 8], deep: {middle: [8, 4]},",
            r"stem\.deep\.middle of space 'broken' must list",
        ),
        (
            "stem: {width: [4, 8],",
            "stem: {width: [4, 8], deep: {middle: [4], residual: [2, 0]},",
            r"stem\.deep\.residual of space 'broken' must list",
        ),
        (
            "  - {width: [8], depth",
            "  - {block: ghost, width: [8], depth",
            r"There is no block 'ghost'; the kinds are inverted, bottleneck",
        ),
        ("depth: [1, 2]", "dept: [1, 2]", r"there is no field 'stages.0.dept'; did you mean 'depth'"),
        (
            "resolution: [8, 12]",
            "shortcut: projected\nresolution: [8, 13]",
            r"resolution of space .* multiples of its total stride 2 .* but lists 13",
        ),
        ("stride: 2", "stride: 0", "'stages.1.stride' = 0 is not valid"),
        ("expand: [2, 3]", "expand: [2, .inf]", "finite"),
        ("expand: 2,", "expand: 0,", "'head.expand' = 0 is not valid"),
        ("act: relu", "act: gelu", "'stages.0.act' = 'gelu' is not valid"),
    ],
)
def test_a_broken_space_file_is_one_sentence(
    tiny_yaml: Path, tmp_path: Path, old: str, new: str, said: str
) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(tiny_yaml.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=said):
        load_space(str(path))


def test_bottlenecks_refuse_what_they_have_not() -> None:
    space = load_space("ofa_resnet50").model_dump()
    first, *others = space["stages"]
    for change, said in (
        ({"kernel": (3, 5)}, r"stages\[0\]\.kernel .* must be one kernel, since bottlenecks take no more"),
        ({"se": True}, r"stages\[0\]\.se .* must be false, since bottlenecks have no squeeze"),
        ({"group_width": 8}, r"stages\[0\]\.expand .* must be one choice where there is a group_width"),
        (
            {"block": "basic", "group_width": 8},
            r"group_width .* must be left out of basic blocks; .* bottleneck",
        ),
        ({"block": "inverted", "pooled": False}, r"pooled .* out of inverted blocks; .* bottleneck, basic"),
    ):
        with pytest.raises(ValueError, match=said):
            Space.model_validate(space | {"stages": (first | change, *others)})
    with pytest.raises(ValueError, match=r"stages\[0\]\.block .* is bottleneck, whose shortcuts are"):
        Space.model_validate(space | {"shortcut": "projected"})
    with pytest.raises(
        ValueError, match=r"is bottleneck, which knows no padding: same; .* are inverted, fused"
    ):
        Space.model_validate(space | {"padding": "same"})


def test_a_stem_with_a_pool_refuses_same_padding() -> None:
    space = load_space("small32").model_dump()
    deep = space["stem"] | {"deep": {"middle": (8,)}}
    with pytest.raises(ValueError, match=r"stem of space 'small32' has a pool, which knows no padding: same"):
        Space.model_validate(space | {"padding": "same", "stem": deep})


def test_single_arch_space_keeps_a_shortcut_that_elastic_widths_need() -> None:
    """Widths that happen to agree do not make the first shortcut of a bottleneck stage the identity."""
    stage = {"block": "bottleneck", "width": (16, 32), "depth": (1,), "kernel": (3,), "expand": (0.5,)}
    space = Space.model_validate(
        {"name": "x", "resolution": (8,), "stem": {"width": (8, 16)}, "stages": (stage,)}
    )
    arch = Arch(resolution=8, width=(16, 16), depth=(1,), kernel=(3,), expand=(0.5,))
    single = single_arch_space(space, arch)
    assert cost_of(single, largest(single), 3, 3) == cost_of(space, arch, 3, 3)
    source, target = Supernet(space, 3), Supernet(single, 3)
    start_from(target, source, arch)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(target(x, largest(single)), source(x, arch))
