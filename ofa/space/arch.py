"""An architecture: what is chosen from a space, as people read it and files store it."""

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from engine.blocks.kind import BlockChoice
from engine.config import Config
from engine.errors import UserError
from ofa.space.space import Column, Space


class Arch(Config):
    """One architecture. Entries of blocks past a stage's depth are 0."""

    resolution: int
    width: tuple[int, ...] = Field(
        description="channels of the stem, of each stage, and of the head if the space has one"
    )
    depth: tuple[int, ...] = Field(description="number of blocks of each stage")
    kernel: tuple[int, ...] = Field(
        description="kernel of each stage, or of each block of the deepest network if the space says so"
    )
    expand: tuple[float, ...] = Field(description="expansions, in the order of the kernels")
    stem: tuple[int, ...] = Field(
        (), description="middle width and number of residual convolutions of a deep stem; empty for others"
    )


def chosen_value(arch: Arch, column: Column) -> float:
    """The entry of `arch` that a column of its space describes."""
    if column.field == "resolution":
        return arch.resolution
    value: float = getattr(arch, column.field)[column.position]
    return value


def check_arch(space: Space, arch: Arch) -> None:
    """Refuse an architecture that is not of `space`. Entries of inactive blocks may be anything.

    Raises:
        UserError: a field has too few or too many entries, or a value is not among the space's choices; the
            sentence names it.
    """
    for field in ("width", "depth", "kernel", "expand", "stem"):
        given, wanted = len(getattr(arch, field)), _entries(space, field)
        if given != wanted:
            raise UserError(f"{field} has {given} entries, but space '{space.name}' has {wanted}.")
    for column in space.columns:
        value = chosen_value(arch, column)
        # The cheap question first, since nearly every value passes it: this runs in every forward pass, and
        # takes 3 to 30 microseconds there.
        if value not in column.values and is_active(space, arch, column):
            place = column.field if column.field == "resolution" else f"{column.field}[{column.position}]"
            raise UserError(
                f"{place} = {value} is not in space '{space.name}'; its choices are "
                f"{', '.join(map(str, column.values))}."
            )


def _entries(space: Space, field: str) -> int:
    """How many entries a field of Arch has in `space`."""
    if field == "width":
        return 1 + len(space.stages) + (space.head is not None)
    if field == "depth":
        return len(space.stages)
    if field == "stem":
        return 2 if space.stem.deep else 0
    return len(space.slot_stage)


def is_active(space: Space, arch: Arch, column: Column) -> bool:
    """Whether `arch` reads this column: it does not if the column is of a block past the depth."""
    # A kernel that is chosen for a whole stage is read by its first block, which every stage has.
    if space.granularity == "stage" or column.field not in ("kernel", "expand"):
        return True
    stage = space.slot_stage[column.position]
    return column.position - space.slot(stage, 0) < arch.depth[stage]


def active_blocks(space: Space, arch: Arch) -> Iterator[tuple[int, int, BlockChoice]]:
    """The blocks that `arch` runs, in order.

    Yields:
        The stage of a block, its number within the stage, and what `arch` chooses for it.
    """
    for stage, depth in enumerate(arch.depth):
        for block in range(depth):
            slot = space.slot(stage, block)
            # The first width is the stem's.
            yield stage, block, BlockChoice(arch.width[stage + 1], arch.kernel[slot], arch.expand[slot])


def smallest(space: Space) -> Arch:
    """The architecture with the first choice everywhere; none needs fewer MACs or parameters."""
    return _extreme(space, 0)


def largest(space: Space) -> Arch:
    """The architecture with the last choice everywhere."""
    return _extreme(space, -1)


def _extreme(space: Space, choice: int) -> Arch:
    # First every block as if it were active, to learn the depths; then those past the depth become 0.
    everything = arch_of([column.values[choice] for column in space.columns], space)
    active = [is_active(space, everything, column) for column in space.columns]
    values = [column.values[choice] if on else 0 for column, on in zip(space.columns, active, strict=True)]
    return arch_of(values, space)


def arch_of(values: list[float], space: Space) -> Arch:
    """The architecture with these values.

    Args:
        values: one for each of `space.columns`, in their order; 0 for inactive blocks.
        space: of the architecture.
    """
    fields: dict[str, Any] = {field: [] for field in Arch.model_fields}
    for column, value in zip(space.columns, values, strict=True):
        fields[column.field].append(value)
    (resolution,) = fields["resolution"]
    return Arch(**fields | {"resolution": resolution})


def single_arch_space(space: Space, arch: Arch) -> Space:
    """The space that holds the network of `arch` and nothing else.

    Every block is a stage of its own, with one choice each. Training this space is training that network from
    scratch, with its own initialisation.
    """
    stages = []
    for i, block, choice in active_blocks(space, arch):
        stage = space.stages[i]
        only_choice = {
            "width": (choice.width,),
            "depth": (1,),
            # 0 says that the block reads no kernel, and every list of kernels has one.
            "kernel": (choice.kernel or stage.kernel[0],),
            "expand": (choice.expand,),
            "stride": stage.stride if block == 0 else 1,
            "start": stage.start[block : block + 1],
            "middle": stage.middle[block : block + 1],
            # Widths that happen to agree here do not make the shortcut of the supernet's block the identity.
            "downsample": space.changes_width(i, block),
        }
        stages.append(stage.model_copy(update=only_choice))
    deep = space.stem.deep
    if deep is not None:
        deep = deep.model_copy(update={"middle": arch.stem[:1], "residual": arch.stem[1:]})
    changes = {
        "resolution": (arch.resolution,),
        "granularity": "stage",
        "stem": space.stem.model_copy(update={"width": arch.width[:1], "deep": deep}),
        "stages": tuple(stages),
        "head": space.head.model_copy(update={"width": arch.width[-1:]}) if space.head else None,
    }
    # Not by model_copy, which would keep the cached columns of the space that this comes from.
    values = {name: getattr(space, name) for name in Space.model_fields}
    return Space.model_validate(values | changes)
