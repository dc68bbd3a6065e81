"""An architecture as a picture: a row for each stage, its blocks from left to right, and in dashes what the
supernet would allow."""

from collections.abc import Iterator

from engine.plot.canvas import Drawing, Outline, Role, Shape, Words, box, text_width
from ofa.blocks.sizes import halve
from ofa.blocks.table import block_kind
from ofa.space.arch import Arch
from ofa.space.space import Space

WIDTH, LABEL, ROW, GAP = 420.0, 126.0, 40.0, 4.0
THIN, THICK = 16.0, 34.0
WIDEST_BLOCK = 84.0
SHADES: tuple[Role, ...] = ("shade1", "shade2", "shade3", "shade4")


def draw_architecture(title: str, space: Space, arch: Arch) -> Drawing:
    """From the image above to the classes below. Taller blocks have more channels, darker ones larger
    kernels.

    Args:
        title: of the drawing.
        space: whose deepest stages decide the layout, so that drawings of two subnets can be compared.
        arch: of that space.
    """
    size = halve(halve(arch.resolution, space.stem.stride), 2 if space.stem.deep else 1)
    shapes: list[Shape] = []
    y = 4.0
    shapes += _simple_row(
        y, "stem", arch.width[0], size, _stem_text(space, arch), space.stem.width[-1], arch.width[0]
    )
    for i, stage in enumerate(space.stages):
        y += ROW
        size = halve(size, stage.stride)
        notes = [f"{arch.width[i + 1]} ch", f"{size}×{size}", *(["SE"] if stage.se else [])]
        shapes += _label(y, f"stage {i + 1}", notes)
        shapes += _blocks(y, space, arch, i)
    if space.head:
        y += ROW
        shapes += _simple_row(
            y, "head", arch.width[-1], 1, "features to classes", space.head.width[-1], arch.width[-1]
        )
    return Drawing(title, WIDTH, y + ROW + 8, tuple(shapes))


def shades(space: Space) -> dict[int, Role]:
    """A shade for each kernel size of the space, darker for larger ones."""
    kernels = sorted({k for stage in space.stages for k in stage.kernel})
    return {
        kernel: SHADES[round(i * (len(SHADES) - 1) / max(len(kernels) - 1, 1))]
        for i, kernel in enumerate(kernels)
    }


def _stem_text(space: Space, arch: Arch) -> str:
    return f"3×3, middle {arch.stem[0]}, {arch.stem[1]} residual" if space.stem.deep else "3×3"


def _label(y: float, name: str, notes: list[str]) -> Iterator[Shape]:
    yield Words(8, y + ROW / 2 - 2, name, 12, bold=True)
    yield Words(8, y + ROW / 2 + 12, " · ".join(notes), 11, "quiet")


def _simple_row(
    y: float, name: str, width: int, size: int, text: str, most: int, channels: int
) -> Iterator[Shape]:
    """Stem or head: one box, as long as its share of the widest choice."""
    yield from _label(y, name, [f"{width} ch", f"{size}×{size}"])
    room = WIDTH - LABEL - 8
    if channels < most:
        yield box(LABEL, y + 9, room, ROW - 18, line="known", dashed=True)
    yield box(
        LABEL,
        y + 9,
        room * channels / most,
        ROW - 18,
        "grid",
        title=f"{name}: {channels} of up to {most} channels",
    )
    yield Words(LABEL + 8, y + ROW / 2 + 4, text, 11)


def _blocks(y: float, space: Space, arch: Arch, i: int) -> Iterator[Shape]:
    """The blocks of stage `i`, and dashed ones up to its greatest depth and width."""
    stage, channels = space.stages[i], arch.width[i + 1]
    widest = max(s.width[-1] for s in space.stages)
    deepest = max(s.depth[-1] for s in space.stages)
    step = min((WIDTH - LABEL - 8) / deepest, WIDEST_BLOCK)
    describe = block_kind(stage.block).describe
    longest = max((describe(k, e) for k in stage.kernel for e in stage.expand), key=len)
    text_size = min(11.0, (step - GAP - 4) / text_width(longest, 1))
    for block in range(stage.depth[-1]):
        x = LABEL + step * block
        if block >= arch.depth[i] or channels < stage.width[-1]:
            yield _block_box(x, y, step, stage.width[-1] / widest, None, "")
        if block < arch.depth[i]:
            slot = space.slot(i, block)
            kernel, expand = arch.kernel[slot], arch.expand[slot]
            facts = (
                f"stage {i + 1}, block {block + 1}: {channels} channels, kernel {kernel}, expansion "
                f"{expand:g}"
            )
            stride = f", stride {stage.stride}" if block == 0 and stage.stride > 1 else ""
            yield _block_box(x, y, step, channels / widest, shades(space)[kernel], facts + stride)
            yield Words(
                x + (step - GAP) / 2,
                y + ROW / 2 + text_size / 3,
                describe(kernel, expand),
                text_size,
                anchor="middle",
            )


def _block_box(x: float, y: float, step: float, share: float, fill: Role | None, title: str) -> Outline:
    tall = THIN + (THICK - THIN) * share
    dashed = fill is None
    return box(x, y + (ROW - tall) / 2, step - GAP, tall, fill, "known" if dashed else None, dashed, title)
