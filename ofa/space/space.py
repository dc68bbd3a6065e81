"""Space and Arch: what can be chosen and what was chosen, as data.

An architecture has two forms. `Arch` holds values and is what people read and files store. A row of codes
(uint8) holds, for each column of the space, 1 + the index of the choice, and 0 where a block is inactive:
arrays of a million rows are sampled, costed, mutated and encoded at once. The two are one-to-one.
"""

import json
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from engine.config import Config, read_yaml, validate
from engine.errors import UserError, nearest
from engine.run import read_json

Codes = NDArray[np.uint8]
Act = Literal["relu", "relu6", "hard_swish", "swish"]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Choices = Annotated[tuple[int, ...], Field(min_length=1, max_length=255)]


class Deep(Config):
    """ResNet-D's stem (arXiv:1812.01187): 3 x 3 to `middle`, as many residual 3 x 3 as `residual` says, 3 x 3
    to the stem's width.

    A 3 x 3 max pool of stride 2 follows.
    """

    middle: Choices
    residual: Choices = (0,)


class Stem(Config):
    """3 x 3 convolution, BatchNorm, activation; or three and more of them, and a pool."""

    width: Choices
    stride: int = Field(2, ge=1)
    act: Act = "swish"
    deep: Deep | None = None


class Stage(Config):
    """Blocks of one kind. The first one carries the stride and the change of width; the first d of them are
    active."""

    block: Literal["inverted", "bottleneck"] = Field(
        "inverted",
        description=(
            "inverted: 1x1, depthwise, 1x1 (MobileNet); bottleneck: 1x1, 3x3, 1x1, activation after the sum "
            "(ResNet-D)"
        ),
    )
    width: Choices
    depth: Choices
    kernel: Choices
    expand: Annotated[tuple[Finite, ...], Field(min_length=1, max_length=255)] = Field(
        description=(
            "hidden width / input width, where (1,) means no expansion layer; of a bottleneck: / output width"
        )
    )
    stride: int = Field(1, ge=1)
    se: bool = False
    act: Act = "swish"
    downsample: bool = Field(
        False,
        description="bottleneck: a convolution in the first shortcut even where stride and widths need none",
    )


class Head(Config):
    """What turns the last stage's map into features.

    With `expand` (MobileNetV3, AttentiveNAS): 1x1 to expand x last width + BN + act, global pool, 1x1 to
    `width` + act. Without (MobileNetV2, BigNAS): 1x1 to `width` + BN + act, global pool. A linear classifier
    follows.
    """

    width: Choices
    expand: int | None = Field(None, ge=1)
    act: Act = "swish"
    bias: bool = Field(
        False, description="of the 1x1 after the pool, as in torchvision's and timm's MobileNetV3"
    )


class Arch(Config):
    """One architecture. Entries of blocks past a stage's depth are 0."""

    resolution: int
    width: tuple[int, ...] = Field(description="stem, each stage, head (unless the space has none)")
    depth: tuple[int, ...] = Field(description="blocks of each stage")
    kernel: tuple[int, ...] = Field(
        description="of each stage, or of each block of the deepest network, as the space says"
    )
    expand: tuple[float, ...] = Field(description="like kernel")
    stem: tuple[int, ...] = Field((), description="of a deep stem: middle width, residual convolutions")


class Column(NamedTuple):
    """One choice of a space: `field` of Arch, position in it, and the ascending values it may take."""

    field: str
    position: int
    values: tuple[float, ...]


class Space(Config):
    """The choices of a supernet. `granularity` says whether kernel and expansion are chosen per stage or per
    block."""

    name: str
    source: str = Field("", description="paper or file the numbers come from")
    resolution: Choices
    granularity: Literal["stage", "block"] = "stage"
    shortcut: Literal["identity", "projected"] = Field(
        "identity",
        description=(
            "identity: where stride is 1 and widths agree; projected (AttentiveNAS): everywhere, pooled, "
            "then 1x1 if widths differ"
        ),
    )
    kernels: Literal["crop", "transform"] = Field(
        "crop",
        description=(
            "a smaller kernel is the centre of the largest (BigNAS), or that mapped by learned matrices (OFA)"
        ),
    )
    bn_eps: float = Field(1e-5, gt=0, description="BatchNorm's epsilon")
    stem: Stem
    stages: tuple[Stage, ...] = Field(min_length=1)
    head: Head | None = Field(None, description="none: the pooled map goes to the classifier (ResNet)")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for column in self.columns:
            where = f"{column.field}[{column.position}] of space '{self.name}'"
            least = 0 if (column.field, column.position) == ("stem", 1) else 1e-9
            if list(column.values) != sorted(set(column.values)) or column.values[0] < least:
                raise ValueError(
                    f"{where} must list positive choices in ascending order, but lists {column.values}"
                )
            if column.field == "kernel" and any(k % 2 == 0 for k in column.values):
                raise ValueError(f"{where} must list odd kernels, but lists {column.values}")
            inverted = (
                column.field == "expand" and self.stages[self.slot_stage[column.position]].block == "inverted"
            )
            if inverted and 1 in column.values and len(column.values) > 1:
                raise ValueError(
                    f"{where} mixes 1, which has no expansion layer, with others: {column.values}"
                )
        for i, stage in enumerate(self.stages):
            if stage.block == "bottleneck" and (
                len(stage.kernel) > 1 or stage.se or self.shortcut == "projected"
            ):
                raise ValueError(
                    f"stage {i} of space '{self.name}' has bottlenecks, which take one kernel, no se and "
                    "shortcut: identity "
                    "(theirs are convolutions where they must be)"
                )
        total = self.stem.stride * int(np.prod([stage.stride for stage in self.stages]))
        if self.shortcut == "projected" and any(r % total for r in self.resolution):
            raise ValueError(
                f"resolutions of space '{self.name}' must be multiples of its total stride {total} for "
                "projected shortcuts"
            )
        return self

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The columns of a row of codes, in the order of Arch's fields."""
        widths = [self.stem.width, *(s.width for s in self.stages), *([self.head.width] if self.head else [])]
        columns = [Column("resolution", 0, self.resolution)]
        columns += [Column("width", i, w) for i, w in enumerate(widths)]
        columns += [Column("depth", i, s.depth) for i, s in enumerate(self.stages)]
        columns += [Column("kernel", i, self.stages[s].kernel) for i, s in enumerate(self.slot_stage)]
        columns += [Column("expand", i, self.stages[s].expand) for i, s in enumerate(self.slot_stage)]
        if self.stem.deep:
            columns += [Column("stem", 0, self.stem.deep.middle), Column("stem", 1, self.stem.deep.residual)]
        return tuple(columns)

    @cached_property
    def slot_stage(self) -> tuple[int, ...]:
        """Stage of each entry of Arch.kernel and Arch.expand."""
        if self.granularity == "stage":
            return tuple(range(len(self.stages)))
        return tuple(i for i, stage in enumerate(self.stages) for _ in range(stage.depth[-1]))

    def slot(self, stage: int, block: int) -> int:
        """Entry of Arch.kernel and Arch.expand that block `block` of stage `stage` reads."""
        return stage if self.granularity == "stage" else self.slot_stage.index(stage) + block

    def changes_width(self, stage: int, block: int) -> bool:
        """Whether this block's shortcut cannot be the identity in every architecture: stride, or other widths
        than its input's."""
        before = self.stages[stage - 1].width if stage else self.stem.width
        width = self.stages[stage].width
        return block == 0 and (
            self.stages[stage].downsample
            or self.stages[stage].stride > 1
            or before != width
            or len(width) > 1
        )

    @cached_property
    def column_index(self) -> dict[tuple[str, int], int]:
        """Column number by (field, position)."""
        return {(c.field, c.position): i for i, c in enumerate(self.columns)}

    @property
    def cardinalities(self) -> NDArray[np.int64]:
        """Number of choices of each column."""
        return np.array([len(c.values) for c in self.columns])

    def size(self) -> int:
        """Number of different architectures, exactly."""
        total = len(self.resolution) * len(self.stem.width) * (len(self.head.width) if self.head else 1)
        total *= len(self.stem.deep.middle) * len(self.stem.deep.residual) if self.stem.deep else 1
        for stage in self.stages:
            block = len(stage.kernel) * len(stage.expand)
            total *= len(stage.width) * (
                len(stage.depth) * block
                if self.granularity == "stage"
                else sum(block**d for d in stage.depth)
            )
        return total


def load_space(name: str) -> Space:
    """A space by packaged name (`bignas`) or YAML path.

    Raises:
        UserError: there is none, or it is not valid.
    """
    folder = Path(str(files("ofa.space"))) / "spaces"
    path = Path(name) if Path(name).is_file() else folder / f"{name}.yaml"
    if not path.is_file():
        known = [p.stem for p in folder.glob("*.yaml")]
        raise UserError(
            f"There is no space '{name}', neither as a file nor as a packaged one; {nearest(name, known)}"
        )
    return validate(Space, {"name": path.stem} | read_yaml(path), str(path))


class Published(Config):
    """A subnet as its authors report it: counted multiply-accumulates and parameters for 1,000 classes, and
    ImageNet top-1 in percent."""

    arch: Arch
    macs: int
    params: int
    imagenet_top1: float


def published(space: Space) -> dict[str, Published]:
    """Published subnets of a packaged space by name; none for other spaces."""
    path = Path(str(files("ofa.space"))) / "archs" / f"{space.name}.yaml"
    return (
        {name: Published.model_validate(value) for name, value in read_yaml(path).items()}
        if path.is_file()
        else {}
    )


def find_arch(space: Space, name: str) -> Arch:
    """`smallest`, `largest`, a published name, a JSON file with an architecture (or with one under "arch"),
    or the JSON itself.

    Raises:
        UserError: it is none of these, or not of this space.
    """
    if name in ("smallest", "largest"):
        return smallest(space) if name == "smallest" else largest(space)
    named = published(space)
    if name in named:
        return decode(space, encode(space, named[name].arch))
    if name.endswith(".json") and not Path(name).is_file():
        raise UserError(
            f"There is no file '{name}'; give a file of predictors.select, or "
            f"{', '.join(['smallest', 'largest', *named])}."
        )
    if not name.lstrip().startswith("{") and not Path(name).is_file():
        known = ", ".join(["smallest", "largest", *named])
        raise UserError(
            f"Space '{space.name}' has no architecture '{name}'; give {known}, a file of predictors.select, "
            "or JSON."
        )
    try:
        values = json.loads(name) if name.lstrip().startswith("{") else read_json(Path(name))
    except ValueError as error:
        raise UserError(f"Architecture '{name}' is not valid JSON ({error}).") from None
    if not isinstance(values, dict):
        raise UserError(f"'{name}' holds no single architecture, but a JSON {type(values).__name__}.")
    arch = validate(Arch, values.get("arch", values), f"architecture '{name}'")
    return decode(space, encode(space, arch))


def encode(space: Space, arch: Arch) -> Codes:
    """The row of codes of `arch`.

    Raises:
        UserError: a value is not among the space's choices; the sentence names it.
    """
    _check_lengths(space, arch)
    row = np.zeros(len(space.columns), np.uint8)
    active = _active(space, np.array(arch.depth)[None])[0]
    for i, (field, position, values) in enumerate(space.columns):
        entry = arch.resolution if field == "resolution" else getattr(arch, field)[position]
        if not active[i]:
            continue
        if entry not in values:
            raise UserError(
                f"{field}[{position}] = {entry} is not in space '{space.name}'; its choices are "
                f"{', '.join(map(str, values))}."
            )
        row[i] = 1 + values.index(entry)
    return row


def decode(space: Space, codes: Codes) -> Arch:
    """The architecture of one row of codes."""
    fields: dict[str, list[Any]] = {name: [] for name in Arch.model_fields}
    for column, code in zip(space.columns, codes, strict=True):
        fields[column.field].append(column.values[code - 1] if code else 0)
    return Arch(**{**fields, "resolution": fields["resolution"][0]})


def canonical(space: Space, codes_NF: Codes) -> Codes:
    """The same rows with inactive blocks set to 0 and newly active ones that hold 0 set to their first
    choice."""
    depth_NS = np.stack(
        [
            np.array(s.depth)[codes_NF[:, space.column_index["depth", i]] - 1]
            for i, s in enumerate(space.stages)
        ],
        axis=1,
    )
    return np.where(_active(space, depth_NS), np.maximum(codes_NF, 1), 0).astype(np.uint8)


def smallest(space: Space) -> Arch:
    """The architecture with the first choice everywhere; none needs fewer MACs or parameters."""
    return decode(space, canonical(space, np.ones((1, len(space.columns)), np.uint8))[0])


def largest(space: Space) -> Arch:
    """The architecture with the last choice everywhere."""
    return decode(space, canonical(space, space.cardinalities.astype(np.uint8)[None])[0])


def sample(space: Space, rng: np.random.Generator) -> Arch:
    """One architecture, every choice uniform (BigNAS)."""
    return decode(space, sample_codes(space, 1, rng)[0])


def sample_codes(space: Space, count: int, rng: np.random.Generator) -> Codes:
    """`count` rows, every choice uniform and independent."""
    columns = [rng.integers(1, n, count, np.uint8, endpoint=True) for n in space.cardinalities]
    return canonical(space, np.stack(columns, axis=1))


def only(space: Space, arch: Arch) -> Space:
    """The space that holds the network of `arch` and nothing else: every block is a stage of its own, with
    one choice each.

    Training it is training that network from scratch, with its own initialisation.
    """
    stages = []
    for i, stage in enumerate(space.stages):
        for block in range(arch.depth[i]):
            slot = space.slot(i, block)
            single = {
                "width": (arch.width[i + 1],),
                "depth": (1,),
                "kernel": (arch.kernel[slot],),
                "expand": (arch.expand[slot],),
            }
            first = {"stride": stage.stride if block == 0 else 1, "downsample": space.changes_width(i, block)}
            stages.append(stage.model_copy(update=single | first))
    deep = Deep(middle=arch.stem[:1], residual=arch.stem[1:]) if space.stem.deep else None
    stem = space.stem.model_copy(update={"width": arch.width[:1], "deep": deep})
    head = space.head.model_copy(update={"width": arch.width[-1:]}) if space.head else None
    fixed = {
        "resolution": (arch.resolution,),
        "granularity": "stage",
        "stem": stem,
        "stages": tuple(stages),
        "head": head,
    }
    return Space.model_validate({name: getattr(space, name) for name in Space.model_fields} | fixed)


def mutate(space: Space, codes_NF: Codes, probability: float, rng: np.random.Generator) -> Codes:
    """Each row with each choice drawn anew with `probability`; the choices of a block that thereby wakes up
    are drawn, too."""
    fresh = np.stack(
        [rng.integers(1, n, len(codes_NF), np.uint8, endpoint=True) for n in space.cardinalities], axis=1
    )
    return canonical(
        space, np.where((rng.random(codes_NF.shape) < probability) | (codes_NF == 0), fresh, codes_NF)
    )


def cross(space: Space, codes_NF: Codes, others_NF: Codes, rng: np.random.Generator) -> Codes:
    """Each choice from one of two parents, with even odds; from the one that has the block where only one
    does."""
    other = ((rng.random(codes_NF.shape) < 0.5) | (codes_NF == 0)) & (others_NF != 0)
    return canonical(space, np.where(other, others_NF, codes_NF))


def thermometer(space: Space, codes_NF: Codes) -> NDArray[np.float32]:
    """(N, sum of cardinalities) thermometer code, what predictors see: for each choice, whether it is this
    value or a later one.

    Neighbouring choices share most of their code, and blocks past a stage's depth are zeros.
    """
    parts = [codes_NF[:, i, None] >= np.arange(1, n + 1) for i, n in enumerate(space.cardinalities)]
    return np.concatenate(parts, axis=1).astype(np.float32)


def _active(space: Space, depth_NS: NDArray[Any]) -> NDArray[np.bool_]:
    """(N, F): which columns are read by architectures of the given depths."""
    active = np.ones((len(depth_NS), len(space.columns)), np.bool_)
    if space.granularity == "block":
        for slot, stage in enumerate(space.slot_stage):
            reached = depth_NS[:, stage] > slot - space.slot_stage.index(stage)
            active[:, space.column_index["kernel", slot]] = reached
            active[:, space.column_index["expand", slot]] = reached
    return active


def _check_lengths(space: Space, arch: Arch) -> None:
    for field in ("width", "depth", "kernel", "expand", "stem"):
        given, wanted = len(getattr(arch, field)), sum(column.field == field for column in space.columns)
        if given != wanted:
            raise UserError(f"{field} has {given} entries, but space '{space.name}' has {wanted}.")
