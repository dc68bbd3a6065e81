"""The targets: what a file for each kind of device must be, and why, as data."""

from pathlib import Path

from engine.config import read_yaml, validate
from engine.errors import UserError, nearest
from export.targets.runtimes import RUNTIME_TARGETS
from export.targets.target import Target

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
    *RUNTIME_TARGETS,
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
