"""A search space as data: everything that can be chosen, read from YAML and checked.

`ofa.space.arch` holds what is chosen from it, and `ofa.space.codes` the same as arrays of numbers.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib.resources import files
from math import prod
from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from engine.blocks.kind import BlockPosition, BlockSettings
from engine.blocks.table import BLOCKS, block_kind
from engine.config import Config, read_yaml, validate
from engine.errors import UserError, nearest
from ofa.space.parts import Choices, Head, Stage, Stem


# Here and not beside the codes that it describes, since a space lists its own columns.
class Column(NamedTuple):
    """One choice of a space: `field` of Arch, position in it, and the ascending values it may take."""

    field: str
    position: int
    values: tuple[float, ...]


class Space(Config):
    """The choices of a supernet.

    `granularity` says whether kernel and expansion are chosen per stage or per block.
    """

    name: str
    source: str = Field("", description="paper or file the numbers come from")
    resolution: Choices
    granularity: Literal["stage", "block"] = "stage"
    shortcut: Literal["identity", "projected"] = Field(
        "identity",
        description=(
            "identity: a shortcut where stride is 1 and widths agree; projected (AttentiveNAS): a shortcut "
            "everywhere, pooled if there is a stride, then a 1x1 if widths differ"
        ),
    )
    kernels: Literal["crop", "transform"] = Field(
        "crop",
        description=(
            "a smaller kernel is the centre of the largest (BigNAS), or that mapped by learned matrices (OFA)"
        ),
    )
    padding: Literal["symmetric", "same"] = Field(
        "symmetric",
        description=(
            "symmetric: half a kernel of zeros on every side; same (TensorFlow): where the stride is 2 and "
            "the map's side even, one row and column more right and below than left and above"
        ),
    )
    bn_eps: float = Field(1e-5, gt=0, description="BatchNorm's epsilon")
    stem: Stem
    stages: tuple[Stage, ...] = Field(min_length=1)
    head: Head | None = Field(None, description="none: the pooled map goes to the classifier (ResNet)")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for where, values in self._choice_lists():
            # Expansions may be fractions, so that the smallest choice is only known to be above 0.
            smallest = 0 if where == "stem.deep.residual" else 1e-9
            # Ascending: the first and the last choices are the smallest and the largest network.
            if list(values) != sorted(set(values)) or values[0] < smallest:
                raise ValueError(
                    f"{where} of space '{self.name}' must list positive choices in ascending order, "
                    f"but lists {values}"
                )
        for i in range(len(self.stages)):
            self._check_stage(i)
        if self.padding == "same" and (self.stem.deep or self.stem.pool):
            raise ValueError(
                f"stem of space '{self.name}' has a pool, which knows no padding: same; "
                "leave out one of the two"
            )
        # A pooled shortcut and the strided branch beside it only meet in maps of the same size if every
        # stride divides its map.
        stride = self.stem.total_stride * prod(stage.stride for stage in self.stages)
        odd = [resolution for resolution in self.resolution if resolution % stride]
        if self.shortcut == "projected" and odd:
            raise ValueError(
                f"resolution of space '{self.name}' must list multiples of its total stride {stride} for "
                f"projected shortcuts, but lists {odd[0]}"
            )
        return self

    def _check_stage(self, i: int) -> None:
        stage = self.stages[i]
        kind = block_kind(stage.block)
        # Only odd kernels have a centre, which smaller kernels are, and keep the side of a map.
        if any(kernel % 2 == 0 for kernel in stage.kernel):
            raise ValueError(
                f"stages[{i}].kernel of space '{self.name}' must list odd kernels, but lists {stage.kernel}"
            )
        wanted = stage.depth[-1] if kind.varies else 0
        for field, entries in (("start", stage.start), ("middle", stage.middle)):
            if len(entries) != wanted:
                raise ValueError(
                    f"stages[{i}].{field} of space '{self.name}' must have {wanted} entries, as many as "
                    f"blocks of kind '{stage.block}' take, but has {len(entries)}"
                )
        for field in ("pooled", "group_width"):
            differs = getattr(stage, field) != Stage.model_fields[field].default
            if differs and field not in kind.own_fields:
                capable = ", ".join(name for name, kind in BLOCKS.items() if field in kind.own_fields)
                raise ValueError(
                    f"stages[{i}].{field} of space '{self.name}' must be left out of {stage.block} blocks; "
                    f"the kinds that have it are {capable}"
                )
        if self.padding == "same" and not kind.pads_same:
            capable = ", ".join(name for name, kind in BLOCKS.items() if kind.pads_same)
            raise ValueError(
                f"stages[{i}].block of space '{self.name}' is {stage.block}, which knows no padding: "
                f"same; the kinds that do are {capable}"
            )
        complaint = kind.check(self.block_settings(i))
        if complaint:
            raise ValueError(f"stages[{i}].{complaint.field} of space '{self.name}' {complaint.sentence}")

    def _choice_lists(self) -> Iterator[tuple[str, Sequence[float]]]:
        """Every list of choices under its name in the file."""
        yield "resolution", self.resolution
        yield "stem.width", self.stem.width
        if self.stem.deep:
            yield "stem.deep.middle", self.stem.deep.middle
            yield "stem.deep.residual", self.stem.deep.residual
        for i, stage in enumerate(self.stages):
            yield f"stages[{i}].width", stage.width
            yield f"stages[{i}].depth", stage.depth
            yield f"stages[{i}].kernel", stage.kernel
            yield f"stages[{i}].expand", stage.expand
        if self.head:
            yield "head.width", self.head.width

    # Cached, since searches read the columns with every draw; a space never changes.
    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The columns of a row of codes, in the order of Arch's fields."""
        widths = [self.stem.width, *(stage.width for stage in self.stages)]
        if self.head:
            widths.append(self.head.width)
        columns = [Column("resolution", 0, self.resolution)]
        columns += [Column("width", i, width) for i, width in enumerate(widths)]
        columns += [Column("depth", i, stage.depth) for i, stage in enumerate(self.stages)]
        for slot, stage in enumerate(self.slot_stage):
            columns.append(Column("kernel", slot, self.kernels_of(stage, slot - self.slot(stage, 0))))
        columns += [Column("expand", i, self.stages[s].expand) for i, s in enumerate(self.slot_stage)]
        if self.stem.deep:
            columns += [Column("stem", 0, self.stem.deep.middle), Column("stem", 1, self.stem.deep.residual)]
        return tuple(columns)

    @cached_property
    def column_index(self) -> dict[tuple[str, int], int]:
        """Column number by (field, position)."""
        return {(c.field, c.position): i for i, c in enumerate(self.columns)}

    @property
    def cardinalities(self) -> NDArray[np.int64]:
        """Number of choices of each column."""
        return np.array([len(c.values) for c in self.columns])

    @cached_property
    def slot_stage(self) -> tuple[int, ...]:
        """Stage of each entry of Arch.kernel and Arch.expand."""
        if self.granularity == "stage":
            return tuple(range(len(self.stages)))
        stages: list[int] = []
        for i, stage in enumerate(self.stages):
            stages += [i] * stage.depth[-1]
        return tuple(stages)

    def slot(self, stage: int, block: int) -> int:
        """Entry of Arch.kernel and Arch.expand that block `block` of stage `stage` reads."""
        return stage if self.granularity == "stage" else self.slot_stage.index(stage) + block

    def kernels_of(self, stage: int, block: int) -> tuple[int, ...]:
        """Choices of the entry of Arch.kernel that belongs to a block.

        They are (0,) where none of the blocks that share the entry has a convolution with an elastic kernel.
        With other choices, several architectures would be the same network.
        """
        here = self.stages[stage]
        readers = here.middle if self.granularity == "stage" else here.middle[block : block + 1]
        return (0,) if readers and not any(readers) else here.kernel

    def widths_before(self, stage: int) -> tuple[int, ...]:
        """Choices of the input width of a stage; after the last stage, of the head's input."""
        return self.stages[stage - 1].width if stage else self.stem.width

    def changes_width(self, stage: int, block: int) -> bool:
        """Whether this block's shortcut cannot be the identity in every architecture.

        It cannot where the block has a stride, or where its width may differ from its input's.
        """
        if block > 0:
            return False  # its input is the stage's own output, at stride 1
        here, before = self.stages[stage], self.widths_before(stage)
        return here.downsample or here.stride > 1 or before != here.width or len(here.width) > 1

    def block_settings(self, stage: int) -> BlockSettings:
        """The settings that all blocks of a stage share, whichever architecture runs."""
        choices = self.stages[stage]
        return BlockSettings(
            kernels=choices.kernel,
            expands=choices.expand,
            se=choices.se,
            act=choices.act,
            bn_eps=self.bn_eps,
            projected=self.shortcut == "projected",
            transformed=self.kernels == "transform",
            pooled=choices.pooled,
            group=choices.group_width,
            same=self.padding == "same",
            stride=choices.stride,
            start=choices.start,
            middle=choices.middle,
        )

    def block_position(self, stage: int, block: int, inputs: int) -> BlockPosition:
        """Where block `block` of stage `stage` stands if it gets `inputs` channels."""
        stride = self.stages[stage].stride if block == 0 else 1
        return BlockPosition(inputs, stride, self.changes_width(stage, block), block)

    def size(self) -> int:
        """Number of different architectures, exactly."""
        total = len(self.resolution) * len(self.stem.width)
        if self.head:
            total *= len(self.head.width)
        if self.stem.deep:
            total *= len(self.stem.deep.middle) * len(self.stem.deep.residual)
        for i, stage in enumerate(self.stages):
            choices = [len(self.kernels_of(i, j)) * len(stage.expand) for j in range(stage.depth[-1])]
            if self.granularity == "stage":
                blocks = len(stage.depth) * choices[0]
            else:  # a stage of d blocks chooses d times; choices of inactive blocks make no difference
                blocks = sum(prod(choices[:depth]) for depth in stage.depth)
            total *= len(stage.width) * blocks
        return total


def load_space(name: str) -> Space:
    """Read a space.

    Args:
        name: path of a YAML file, or the name of a packaged space such as `bignas`.

    Raises:
        UserError: there is none, or it is not valid.
    """
    path = Path(name) if Path(name).is_file() else _packaged() / f"{name}.yaml"
    if not path.is_file():
        known = packaged_spaces()
        raise UserError(
            f"There is no space '{name}', neither as a file nor as a packaged one; {nearest(name, known)}"
        )
    # A file that gives no name is named like the file.
    return validate(Space, {"name": path.stem} | read_yaml(path), str(path))


def packaged_spaces() -> list[str]:
    """The names of the packaged spaces, in alphabetical order."""
    return sorted(path.stem for path in _packaged().glob("*.yaml"))


def _packaged() -> Path:
    return Path(str(files("ofa.space"))) / "spaces"
