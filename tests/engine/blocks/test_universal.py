"""The universal inverted bottleneck against timm's MobileNetV4, and what it and the kind conv refuse."""

from typing import Any

import numpy as np
import pytest
import torch
from networks import shaken
from supernets import universal_spaces
from timm.models._efficientnet_blocks import UniversalInvertedResidual

from engine.blocks.kind import BlockChoice, BlockPosition, BlockSettings
from engine.blocks.kinds.universal import UNIVERSAL, Universal
from engine.compute.macs import count_macs
from ofa.cost import cost_of
from ofa.space.arch import largest, single_arch_space, smallest
from ofa.space.codes import sample
from ofa.space.space import Space


# Kernel at the start, kernel in the middle, stride, expansion, input, output: rows of MobileNetV4, each of
# the four variants, and each that can have a stride with one.
@pytest.mark.parametrize(
    "row",
    [
        (5, 5, 2, 3, 64, 96),
        (0, 3, 1, 2, 96, 96),
        (3, 0, 1, 4, 96, 96),
        (3, 3, 2, 6, 96, 128),
        (0, 0, 1, 2, 160, 160),
        (5, 0, 2, 4, 48, 80),
        (0, 5, 2, 4, 48, 80),
        (3, 5, 1, 1, 32, 48),
    ],
    ids=str,
)
@pytest.mark.parametrize("same", [False, True], ids=["symmetric", "same"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_it_computes_what_timms_does(
    row: tuple[int, int, int, int, int, int], training: bool, same: bool
) -> None:
    start, middle, stride, expand, inp, out = row
    # Only on even maps do the two paddings differ.
    size = 14 if same else 13
    torch.manual_seed(0)
    theirs = shaken(
        UniversalInvertedResidual(
            inp,
            out,
            start,
            middle,
            stride=stride,
            exp_ratio=expand,
            layer_scale_init_value=None,
            pad_type="same" if same else "",
        )
    )
    settings = BlockSettings(
        kernels=(3, 5),
        expands=(1, 2, 3, 4, 6),
        se=None,
        act="relu",
        bn_eps=1e-5,
        projected=False,
        transformed=False,
        same=same,
        stride=stride,
        start=(0, start),
        middle=(True, bool(middle)),
    )
    # Second of its stage: the block must read its own entries.
    position = BlockPosition(inp, stride, stride > 1 or inp != out, 1)
    spec = UNIVERSAL.spec(settings, position, size, BlockChoice(out, middle or 3, expand))
    ours = Universal(spec, 1e-5)
    names = [name for name in ours.state_dict() if not name.endswith("tracked")]
    tensors = [tensor for name, tensor in theirs.state_dict().items() if not name.endswith("tracked")]
    ours.load_state_dict(dict(zip(names, tensors, strict=True)), strict=False)
    x = torch.randn(4, inp, size, size)
    with torch.no_grad():
        torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x), rtol=1e-5, atol=1e-5)
    parameters = sum(p.numel() for p in theirs.parameters())
    assert UNIVERSAL.cost(spec) == (count_macs(theirs, x[:1]), parameters)


def test_a_block_without_a_middle_convolution_has_no_kernel_to_choose() -> None:
    space = universal_spaces()["per block, odd maps"]
    middle = [entry for stage in space.stages for entry in stage.middle]
    for slot, has_middle in enumerate(middle):
        column = space.columns[space.column_index["kernel", slot]]
        assert column.values == ((3, 5) if has_middle else (0,))
    assert largest(space).kernel == tuple(5 if has_middle else 0 for has_middle in middle)
    # Every architecture counts once: as many as there are lists of blocks with what each of them can choose.
    stages = 2 * (2 + 2 * 2), 2 * (6 + 6 * 3 + 6 * 3 * 3 * 6), 2 * (3 + 3 * 3)
    assert space.size() == 2 * 2 * 2 * int(np.prod(stages))


def test_every_block_costs_what_its_own_variant_does() -> None:
    for space in universal_spaces().values():
        for chosen in (smallest(space), largest(space), sample(space, np.random.default_rng(0))):
            single = single_arch_space(space, chosen)
            assert single.size() == 1
            assert cost_of(single, largest(single), 7, 3) == cost_of(space, chosen, 7, 3)


UNIVERSAL_STAGE = {"block": "universal", "expand": (4,), "start": (3, 0), "middle": (True, False)}
CONV_STAGE = {"block": "conv", "expand": (1,)}


@pytest.mark.parametrize(
    ("stage", "changes", "said"),
    [
        ({**UNIVERSAL_STAGE, "se": True}, {}, r"stages\[0\].se .* must be false in a universal block"),
        (UNIVERSAL_STAGE, {"shortcut": "projected"}, r"stages\[0\].block .* is universal, whose shortcuts"),
        ({**UNIVERSAL_STAGE, "start": (3,)}, {}, r"stages\[0\].start .* must have 2 entries.* but has 1"),
        ({**UNIVERSAL_STAGE, "middle": ()}, {}, r"stages\[0\].middle .* must have 2 entries.* but has 0"),
        ({**UNIVERSAL_STAGE, "start": (4, 0)}, {}, r"start"),
        (
            {**UNIVERSAL_STAGE, "start": (0, 3), "middle": (False, True), "stride": 2},
            {},
            r"stages\[0\].stride .* is 2, but the first block has no depthwise convolution",
        ),
        ({**CONV_STAGE, "expand": (2,)}, {}, r"stages\[0\].expand .* must be \[1\] in a conv block"),
        ({**CONV_STAGE, "se": True}, {}, r"stages\[0\].se .* must be false in a conv block"),
        (CONV_STAGE, {"shortcut": "projected"}, r"stages\[0\].block .* is conv, which has no shortcut"),
        (
            {**CONV_STAGE, "kernel": (3, 5)},
            {"kernels": "transform"},
            r"stages\[0\].kernel .* must be one kernel unless",
        ),
        ({**CONV_STAGE, "start": (3, 3)}, {}, r"stages\[0\].start .* must have 0 entries.* 'conv' take"),
        (
            {"block": "inverted", "expand": (4,), "middle": (True, True)},
            {},
            r"stages\[0\].middle .* 0 entries",
        ),
    ],
)
def test_impossible_stages_are_one_sentence(
    stage: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    values = {"width": (8,), "depth": (1, 2), "kernel": (3,)}
    space = {"name": "x", "resolution": (16,), "stem": {"width": (8,)}, "stages": [values | stage]}
    with pytest.raises(ValueError, match=said):
        Space.model_validate(space | changes)
