"""What a file for one kind of device must be, as data."""

from typing import Literal, Self

from pydantic import Field, model_validator

from engine.config import Config
from export.formats import find_format
from export.formats.format import Precision, Quantization


class Target(Config):
    """How to write a file for one kind of device. A YAML file with these fields is a target, too."""

    name: str = Field(
        pattern=r"^[\w-]+$",
        description="as in --target; part of the file's name, unless it is cpu or the format's",
    )
    runs_on: str = Field(description="what runs the file")
    batch: Literal["any", "one"] = Field(
        "any", description="any: the batch axis is free; one: every shape in the file is a number"
    )
    activations: Literal["native", "relu6"] = Field(
        "native",
        description=(
            "relu6: HardSwish and HardSigmoid as add, clip, multiply, and means over a map as "
            "GlobalAveragePool"
        ),
    )
    precision: Precision = Field(
        "float32",
        description="a16w8: activations of 16 bits and weights of 8, for networks that 8 bits hurt",
    )
    quantized_operators: Literal["cpu", "all"] = Field(
        "cpu",
        description=(
            "of int8: cpu: those that onnxruntime has integer kernels for; all: HardSwish and the like too, "
            "as NPUs want it"
        ),
    )
    sums: Literal["exact", "this-cpu"] = Field(
        "exact",
        description=(
            "exact: 8-bit products are summed without saturation while the file is verified; this-cpu: as "
            "programs on the machine that exports sum them"
        ),
    )
    format: str = Field(
        "onnx",
        description=(
            "onnx; ort: flat, optimised for ARM, with the list of operators that it needs; qnn: compiled for "
            "one Snapdragon; mlpackage: for Core ML; litert, ncnn, mnn, executorch: for the runtime of that "
            "name"
        ),
    )
    chip: str | None = Field(
        None, description="of format qnn: the Snapdragon that the file is compiled for; none: SM8650"
    )
    # Two fields of the ONNX graph; a format that is written from the torch module has no use for them.
    opset: int = Field(18, ge=18, le=22, description="below 18 torch's exporter writes 18 without an error")
    ir: int = Field(
        10, ge=8, le=10, description="newest ONNX file version that the runtimes in the field read"
    )
    why: tuple[str, ...] = Field(description="the reasons, as sentences")

    # Here, so that a wrong target is refused before a network is built for it.
    @model_validator(mode="after")
    def _format_can_do_it(self) -> Self:
        """Refuse a target that asks for something that its format does not have."""
        known = find_format(self.format)
        if self.precision not in known.precisions:
            raise ValueError(
                f"format {known.name} cannot be {self.precision}; valid are: {', '.join(known.precisions)}"
            )
        if self.sums == "this-cpu" and self.precision != "int8":
            raise ValueError("sums: this-cpu is about 8-bit products; say precision: int8, or leave out sums")
        if self.chip is not None and self.chip not in known.chips:
            chips = ", ".join(known.chips) or "none"
            raise ValueError(f"format {known.name} is not compiled for '{self.chip}'; valid are: {chips}")
        if known.one_image and self.batch != "one":
            raise ValueError(f"format {known.name} takes one image at a time; say batch: one")
        if known.written_from == "module" and self.activations != "native":
            raise ValueError(
                f"format {known.name} is written from the torch module, whose activations stay; leave out "
                "activations"
            )
        return self

    @property
    def is_quantized(self) -> bool:
        """Whether its files hold integers, whose ranges are calibrated on images."""
        return self.precision in ("int8", "a16w8")

    @property
    def quantization(self) -> Quantization:
        """Which integers the files of a quantised target hold."""
        bits = 16 if self.precision == "a16w8" else 8
        return Quantization(bits, self.quantized_operators == "all")

    def file_name(self, subnet: str) -> str:
        """The name of a subnet's file: `600M.onnx` (cpu), `600M.pte` (executorch), else `600M.qnn.onnx`."""
        known = find_format(self.format)
        # `600M.pte` beside `600M.onnx` needs no middle part: their manifests have different names, too.
        own_manifest = known.manifest_suffix != ".json"
        plain = self.name == "cpu" or (own_manifest and self.name == known.name)
        return f"{subnet}{known.suffix}" if plain else f"{subnet}.{self.name}{known.suffix}"
