"""What a space is made of: the settings of its stem, its stages and its head, as a YAML file gives them."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from engine.blocks.activation import Act
from engine.blocks.squeeze import Squeeze
from engine.blocks.table import BLOCKS, block_kind
from engine.config import Config

# A code is one byte, and 0 says that a block is inactive: hence at most 255 choices.
Choices = Annotated[tuple[int, ...], Field(min_length=1, max_length=255)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Ratios = Annotated[tuple[Finite, ...], Field(min_length=1, max_length=255)]


# Checked by a validator and not typed as a Literal, so that the table of kinds is the only list of them.
def _known_block(name: str) -> str:
    block_kind(name)
    return name


def _squeeze_of(value: object) -> object:
    """`true` stands for the default settings, `false` for none."""
    if isinstance(value, bool):
        return Squeeze() if value else None
    return value


OptionalSqueeze = Annotated[Squeeze | None, BeforeValidator(_squeeze_of)]
BlockName = Annotated[str, AfterValidator(_known_block)]
BLOCKS_EXPLAINED = "; ".join(f"{name}: {kind.description}" for name, kind in BLOCKS.items())


class Deep(Config):
    """ResNet-D's stem (2018, arXiv:1812.01187).

    A 3 x 3 convolution to `middle`, `plain` ordinary and `residual` residual ones of that width, one to the
    stem's width, all 3 x 3, and a 3 x 3 max pool of stride 2.
    """

    middle: Choices
    plain: int = Field(0, ge=0, description="3x3 convolutions without a shortcut, before the residual ones")
    residual: Choices = (0,)


class Stem(Config):
    """Convolution, BatchNorm, activation; or several of them; and perhaps a pool."""

    width: Choices
    stride: int = Field(2, ge=1)
    act: Act = "swish"
    kernel: Literal[3, 7] = Field(3, description="7 in ResNet; 3 in every convolution of a deep stem")
    pool: bool = Field(False, description="a 3x3 max pool of stride 2 at the end; deep stems always have it")
    deep: Deep | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.deep and self.kernel != 3:
            raise ValueError(f"stem.kernel must be 3 in a deep stem, but is {self.kernel}")
        return self

    @property
    def total_stride(self) -> int:
        """How many times smaller the map after the stem is than the image."""
        return self.stride * 2 if self.pool or self.deep else self.stride


class Stage(Config):
    """Blocks of one kind, of which the first `depth` are active.

    The first block carries the stride and the change of width.
    """

    block: BlockName = Field("inverted", description=BLOCKS_EXPLAINED)
    width: Choices
    depth: Choices
    kernel: Choices
    expand: Ratios = Field(
        description=(
            "hidden width over input width, where (1,) means no expansion layer; in bottleneck and basic, "
            "hidden width over output width"
        )
    )
    stride: int = Field(1, ge=1)
    se: OptionalSqueeze = Field(
        None, description="squeeze-and-excitation: false, true (MobileNetV3's) or its settings"
    )
    act: Act = "swish"
    downsample: bool = Field(
        False,
        description="bottleneck: a convolution in the first shortcut even where stride and widths need none",
    )
    start: tuple[Literal[0, 3, 5], ...] = Field(
        (),
        description=(
            "universal: kernel of the depthwise convolution before the expansion, 0 for none; one entry for "
            "each block of the deepest choice"
        ),
    )
    middle: tuple[bool, ...] = Field(
        (),
        description=(
            "universal: whether there is the depthwise convolution after the expansion, of which `kernel` "
            "lists the kernels; one entry for each block of the deepest choice"
        ),
    )
    pooled: bool = Field(
        True,
        description=(
            "bottleneck and basic: a shortcut with a stride is an average pool and a 1x1 convolution "
            "(ResNet-D), or else that convolution has the stride (ResNet)"
        ),
    )
    group_width: int | None = Field(
        None,
        ge=1,
        description="bottleneck: channels in each group of the k x k convolution (RegNet); none: one group",
    )


class Head(Config):
    """What turns the last stage's map into features; a linear classifier follows.

    With `expand` (MobileNetV3, AttentiveNAS): 1x1 to expand x last width + BN + act, global pool, 1x1 to
    `width` + act, with `norm` (MobileNetV4) + BN + act. Without (MobileNetV2, BigNAS): 1x1 to `width` + BN +
    act, global pool.
    """

    width: Choices
    expand: Finite | None = Field(None, ge=1, description="may be a fraction; channels are rounded")
    act: Act = "swish"
    norm: bool = Field(
        False, description="whether a BatchNorm follows the 1x1 after the pool, as in MobileNetV4"
    )
    bias: bool = Field(
        False,
        description="whether the 1x1 after the pool has a bias, as in torchvision's and timm's MobileNetV3",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.norm and self.expand is None:
            raise ValueError("head.norm must be false without head.expand: there is no 1x1 after the pool")
        if self.norm and self.bias:
            raise ValueError("head.bias must be false with head.norm, which would subtract it again")
        return self
