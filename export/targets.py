"""The targets: what a file for each kind of device must be, and why, as data."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from rich.table import Table

from engine.command.cli import Command, main
from engine.command.start import say
from engine.command.table import show
from engine.config import Config, read_yaml, validate
from engine.errors import UserError, nearest
from export.formats import find_format
from export.formats.format import Precision


class Target(Config):
    """How to write a file for one kind of device. A YAML file with these fields is a target, too."""

    name: str = Field(
        pattern=r"^[\w-]+$", description="as in --target; part of the file's name, but for cpu and executorch"
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
            "onnx; ort: flat, optimised for ARM, with the list of operators that it needs; executorch: a "
            "program for torch's own runtime"
        ),
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

    def file_name(self, subnet: str) -> str:
        """The name of a subnet's file: `600M.onnx` (cpu), `600M.pte` (executorch), else `600M.nnapi.onnx`."""
        known = find_format(self.format)
        # `600M.pte` beside `600M.onnx` needs no middle part: their manifests have different names, too.
        own_manifest = known.manifest_suffix != ".json"
        plain = self.name == "cpu" or (own_manifest and self.name == known.name)
        return f"{subnet}{known.suffix}" if plain else f"{subnet}.{self.name}{known.suffix}"


# In the order in which the table shows them; the reference comes first.
TARGETS = (
    Target(
        name="cpu",
        runs_on="onnxruntime on any CPU",
        why=(
            "The reference: every operator has a float32 kernel here, HardSwish as one node; every other "
            "file is compared with it.",
        ),
    ),
    Target(
        name="cpu-int8",
        runs_on="onnxruntime on ARM CPUs, and x86 with VNNI",
        precision="int8",
        why=(
            "A quarter of the weights' bytes; integer kernels for convolutions and sums.",
            "On x86 float32 kernels are so good that int8 may save size only: the table of export.onnx says "
            "what it is here.",
            "It is verified in exact sums, as ARM and VNNI compute them. VNNI came to Intel from 2019 on and "
            "to AMD with Zen 4 in 2022; virtual machines may mask it.",
            "Without it x86 saturates sums of 8-bit products, unless a program sets "
            "session.x64quantprecision to 1: for such a machine there is this-cpu-int8.",
        ),
    ),
    Target(
        name="this-cpu-int8",
        runs_on="onnxruntime on CPUs like the one that exports",
        precision="int8",
        sums="this-cpu",
        why=(
            "8-bit products are summed as this CPU does it fastest while the file is verified, so that its "
            "accuracy is that of programs here.",
            "Without VNNI these sums saturate and more layers stay in float32. For other devices take "
            "cpu-int8.",
        ),
    ),
    Target(
        name="nnapi",
        runs_on="Android's NNAPI through onnxruntime",
        batch="one",
        activations="relu6",
        why=(
            "Android 15 deprecated NNAPI: take this for phones that are in the field, and qnn or cpu-int8 "
            "for new ones.",
            "NNAPI takes no free axis: with one, not a node is handed over.",
            "It has no HardSigmoid, of which HardSwish consists: each splits the graph; as clip and multiply "
            "it stays one part.",
        ),
    ),
    Target(
        name="coreml",
        runs_on="Apple's CoreML through onnxruntime",
        batch="one",
        activations="relu6",
        why=(
            "CoreML takes free axes by now, but the neural engine wants fixed shapes, and computes in "
            "float16 whatever the file says.",
            "Both its formats have ReduceMean and, since spring 2026, HardSigmoid: written as clip, multiply "
            "and pool, the file is one part in older runtimes too.",
        ),
    ),
    Target(
        name="qnn",
        runs_on="Qualcomm's NPU (HTP) through onnxruntime",
        batch="one",
        precision="int8",
        quantized_operators="all",
        why=(
            "The NPU runs quantised graphs with fixed shapes.",
            "Every operator is quantised, HardSwish as one node: QNN's compiler takes it, and three nodes in "
            "its place have three more tensors to round.",
        ),
    ),
    Target(
        name="qnn-a16w8",
        runs_on="Qualcomm's NPU (HTP) through onnxruntime, 16-bit activations",
        batch="one",
        precision="a16w8",
        quantized_operators="all",
        opset=21,
        why=(
            "For networks that 8 bits hurt, as MobileNetV3: 16 bits for activations cost the NPU time, and "
            "hardly any accuracy.",
            "Opset 21, since below it 16-bit integers are no ONNX, but an extension of onnxruntime's.",
        ),
    ),
    Target(
        name="xnnpack",
        runs_on="XNNPACK through onnxruntime on ARM and in browsers",
        batch="one",
        why=(
            "XNNPACK plans its memory once, so shapes are fixed.",
            "It takes convolutions and pools; HardSwish stays with onnxruntime's own kernel, where it is one "
            "node instead of four.",
        ),
    ),
    Target(
        name="web",
        runs_on="onnxruntime-web (WebAssembly, WebGPU) in a browser",
        batch="one",
        why=(
            "A page classifies one image; with fixed shapes WebGPU keeps the whole graph and compiles its "
            "shaders once.",
            "Float32, because WebGPU has few 8-bit kernels.",
        ),
    ),
    Target(
        name="mobile",
        runs_on="a small build of onnxruntime for ARM (minimal build)",
        format="ort",
        why=(
            "A minimal build reads only this format; it is optimised already, so it starts faster.",
            "Such a build is your own: the prebuilt onnxruntime-mobile ended with 1.18, and "
            "onnxruntime-android reads .onnx.",
            "NAME.required_operators.config beside it goes to onnxruntime's build script, which leaves out "
            "every other operator.",
        ),
    ),
    Target(
        name="fp16",
        runs_on="GPUs and NPUs that compute in float16 (CUDA, TensorRT, DirectML, WebGPU)",
        precision="float16",
        why=(
            "Half the bytes; input and output stay float32, so nothing changes for the program around it.",
            "CPUs mostly convert back to float32 in front of every node: for them this saves size only.",
        ),
    ),
    Target(
        name="executorch",
        runs_on="ExecuTorch with XNNPACK on Android and iOS",
        batch="one",
        format="executorch",
        why=(
            "For an app that has torch's own runtime already: the program is written from the torch module, "
            "not from ONNX.",
            "A program has fixed shapes, and XNNPACK computes in float32.",
            "Needs pip install 'ofa-toolkit[executorch]' where it is written.",
        ),
    ),
)


def find_target(name: str) -> Target:
    """The target of that name, or the one in a YAML file.

    Raises:
        UserError: there is none.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        return validate(Target, read_yaml(Path(name)), name)
    for target in TARGETS:
        if target.name == name:
            return target
    raise UserError(
        f"There is no target '{name}'; {nearest(name, [target.name for target in TARGETS])} A YAML file of "
        "yours is one, too."
    )


def find_targets(names: str) -> list[Target]:
    """The targets of names separated by commas, each once.

    Raises:
        UserError: one does not exist, none is named, or two would write the same file.
    """
    words = [word.strip() for word in names.split(",")]
    found: list[Target] = []
    # A name that is given twice counts once; that is no error.
    for word in words:
        if word and (target := find_target(word)) not in found:
            found.append(target)
    if not found:
        raise UserError(
            f"--target names no target; valid are: {', '.join(target.name for target in TARGETS)}."
        )
    names_found = [target.name for target in found]
    if len(set(names_found)) < len(names_found):
        raise UserError(
            f"Two of the targets {', '.join(names_found)} have the same name, so one file would replace the "
            "other; rename yours."
        )
    return found


class ShowTargets(Command):
    """Print what `python -m export.onnx --target NAME` writes for each kind of device, and why.

    examples:
      python -m export.targets
      python -m export.onnx --target nnapi,cpu-int8
    """

    def execute(self) -> int:
        """Print the table, then the reasons."""
        table = Table("target", "runs on", "batch", "activations", "precision", "file", "opset", "IR")
        for target in TARGETS:
            file_format = find_format(target.format)
            from_graph = file_format.written_from == "graph"
            table.add_row(
                target.name,
                target.runs_on,
                target.batch,
                target.activations,
                target.precision,
                file_format.suffix,
                str(target.opset) if from_graph else "-",
                f"<= {target.ir}" if from_graph else "-",
            )
        show(table)
        for target in TARGETS:
            print(f"{target.name}:", *target.why)
        say("next: python -m export.onnx --target nnapi,cpu-int8")
        return 0


if __name__ == "__main__":
    main(ShowTargets)
