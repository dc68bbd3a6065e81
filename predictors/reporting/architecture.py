"""An architecture as a picture with a row for each stage; dashed boxes show what the supernet would allow."""

from collections.abc import Iterator
from typing import NamedTuple

from engine.blocks.sizes import halve
from engine.blocks.table import block_kind
from engine.plot.canvas import Drawing, Outline, Role, Shape, Words, box, text_width
from ofa.space.arch import Arch
from ofa.space.parts import Stage
from ofa.space.space import Space

# Pixels.
WIDTH, LABEL, ROW, GAP = 420.0, 126.0, 40.0, 4.0
ROOM = WIDTH - LABEL - 8  # for the boxes of a row
THIN, THICK = 16.0, 34.0
WIDEST_BLOCK = 84.0
SHADES: tuple[Role, ...] = ("shade1", "shade2", "shade3", "shade4")


def draw_architecture(title: str, space: Space, arch: Arch) -> Drawing:
    """An architecture from the image above to the classes below.

    Taller blocks have more channels, darker ones larger kernels.

    Args:
        title: of the drawing.
        space: whose deepest stages decide the layout, so that drawings of two subnets can be compared.
        arch: of that space.
    """
    size = halve(arch.resolution, space.stem.total_stride)
    y = 4.0
    stem = _Row("stem", arch.width[0], space.stem.width[-1], size, _stem_text(space, arch))
    shapes = list(_stem_or_head(y, stem))
    for i, stage in enumerate(space.stages):
        y += ROW
        size = halve(size, stage.stride)
        notes = [f"{arch.width[i + 1]} ch", f"{size}×{size}"]
        if stage.se:
            notes.append("SE")
        shapes += _label(y, f"stage {i + 1}", notes)
        shapes += _blocks(y, space, arch, i)
    if space.head:
        y += ROW
        head = _Row("head", arch.width[-1], space.head.width[-1], 1, "features to classes")
        shapes += _stem_or_head(y, head)
    return Drawing(title, WIDTH, y + ROW + 8, tuple(shapes))


def shades(space: Space) -> dict[int, Role]:
    """A shade for each kernel size of the space, darker for larger ones."""
    kernels = set[float]()
    # From the columns, which have a 0 where a block has no convolution with an elastic kernel.
    for column in space.columns:
        if column.field == "kernel":
            kernels.update(column.values)
    found = {}
    for i, kernel in enumerate(sorted(kernels)):
        # The smallest kernel has the first shade and the largest the last, however many there are.
        found[int(kernel)] = SHADES[round(i * (len(SHADES) - 1) / max(len(kernels) - 1, 1))]
    return found


class _Row(NamedTuple):
    """A stem or a head: its output channels, the most that they may be, the side of its output map."""

    name: str
    channels: int
    most_channels: int
    size: int
    text: str


def _stem_text(space: Space, arch: Arch) -> str:
    if space.stem.deep:
        return f"3×3, middle {arch.stem[0]}, {arch.stem[1]} residual"
    kernel = f"{space.stem.kernel}×{space.stem.kernel}"
    return f"{kernel}, pool" if space.stem.pool else kernel


def _label(y: float, name: str, notes: list[str]) -> Iterator[Shape]:
    yield Words(8, y + ROW / 2 - 2, name, 12, bold=True)
    yield Words(8, y + ROW / 2 + 12, " · ".join(notes), 11, "quiet")


def _stem_or_head(y: float, row: _Row) -> Iterator[Shape]:
    """One box, as long as its share of the widest choice."""
    yield from _label(y, row.name, [f"{row.channels} ch", f"{row.size}×{row.size}"])
    if row.channels < row.most_channels:
        yield box(LABEL, y + 9, ROOM, ROW - 18, line="known", dashed=True)
    width = ROOM * row.channels / row.most_channels
    title = f"{row.name}: {row.channels} of up to {row.most_channels} channels"
    yield box(LABEL, y + 9, width, ROW - 18, "grid", title=title)
    yield Words(LABEL + 8, y + ROW / 2 + 4, row.text, 11)


def _blocks(y: float, space: Space, arch: Arch, i: int) -> Iterator[Shape]:
    """The blocks of stage `i`, and dashed ones up to its greatest depth and width."""
    stage, channels = space.stages[i], arch.width[i + 1]
    widest = max(s.width[-1] for s in space.stages)
    deepest = max(s.depth[-1] for s in space.stages)
    step = min(ROOM / deepest, WIDEST_BLOCK)
    text_size = min(11.0, (step - GAP - 4) / text_width(_longest_text(stage), 1))
    for block in range(stage.depth[-1]):
        x = LABEL + step * block
        is_there = block < arch.depth[i]
        if not is_there or channels < stage.width[-1]:
            # Below the block, if there is one: the widest one of the supernet shows around it.
            yield _block_box(x, y, step, stage.width[-1] / widest, None, "")
        if is_there:
            slot = space.slot(i, block)
            kernel, expand = arch.kernel[slot], arch.expand[slot]
            stride = f", stride {stage.stride}" if block == 0 and stage.stride > 1 else ""
            kernel_text = f"kernel {kernel}" if kernel else "no elastic kernel"
            title = (
                f"stage {i + 1}, block {block + 1}: {channels} channels, {kernel_text}, "
                f"expansion {expand:g}{stride}"
            )
            yield _block_box(x, y, step, channels / widest, shades(space)[kernel], title)
            center, baseline = x + (step - GAP) / 2, y + ROW / 2 + text_size / 3
            yield Words(
                center, baseline, block_kind(stage.block).describe(kernel, expand), text_size, anchor="middle"
            )


def _longest_text(stage: Stage) -> str:
    """The longest text that a block of the stage can have."""
    # One size of text for the whole stage, so that its blocks look alike.
    texts = []
    describe = block_kind(stage.block).describe
    for kernel in stage.kernel:
        texts += [describe(kernel, expand) for expand in stage.expand]
    return max(texts, key=len)


def _block_box(x: float, y: float, step: float, share: float, fill: Role | None, title: str) -> Outline:
    """A block that has this share of the widest stage's channels; dashed without a fill."""
    tall = THIN + (THICK - THIN) * share
    line: Role | None = None if fill else "known"
    return box(x, y + (ROW - tall) / 2, step - GAP, tall, fill, line, dashed=fill is None, title=title)
