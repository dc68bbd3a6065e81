"""The targets of runtimes that need an extra: QNN's compiler, LiteRT, Core ML, ncnn, MNN and ExecuTorch."""

from export.targets.target import Target

# Snapdragons whose NPU has a program of its own, with the names that phones are sold under.
_SNAPDRAGONS = {
    "SM8550": "Snapdragon 8 Gen 2",
    "SM8650": "Snapdragon 8 Gen 3",
    "SM8750": "Snapdragon 8 Elite",
    "SM8850": "Snapdragon 8 Elite Gen 5",
}


def _compiled_for(chip: str) -> Target:
    """The target of files that are compiled for a Snapdragon."""
    return Target(
        name=f"qnn-{chip.lower()}",
        runs_on=f"the NPU of {_SNAPDRAGONS[chip]}, through onnxruntime",
        batch="one",
        precision="int8",
        quantized_operators="all",
        format="qnn",
        chip=chip,
        why=(
            "As qnn, but compiled here, so that the phone need not compile it when the app starts.",
            "A file is for one chip, and the manifest says whether the whole graph is on its NPU.",
            "It is compared with torch on Qualcomm's emulator of that NPU.",
            "Needs the extra qnn where it is written.",
        ),
    )


RUNTIME_TARGETS = (
    *(_compiled_for(chip) for chip in _SNAPDRAGONS),
    Target(
        name="litert",
        runs_on="LiteRT on Android, iOS and Linux boards",
        batch="one",
        format="litert",
        why=(
            "Google's runtime for phones, which followed TensorFlow Lite and NNAPI; it runs the same file on "
            "CPU and GPU.",
            "It is written from the torch module, so no conversion from ONNX turns axes to and fro.",
            "Needs the extra litert where it is written.",
        ),
    ),
    Target(
        name="litert-int8",
        runs_on="LiteRT on CPUs of Android, iOS and Linux boards, 8 bits",
        batch="one",
        precision="int8",
        format="litert",
        why=(
            "A quarter of the weights' bytes. HardSwish stays in float32: XNNPACK, with which LiteRT runs on "
            "CPUs, has no integer kernel for it and would hand each to a slow one.",
            "Input and output stay float32. Needs the extra litert where it is written.",
        ),
    ),
    Target(
        name="litert-npu",
        runs_on="NPUs and Coral through LiteRT",
        batch="one",
        precision="int8",
        quantized_operators="all",
        format="litert",
        why=(
            "As litert-int8, with every operator in integers, since an NPU computes nothing else.",
            "Input and output stay float32. Needs the extra litert where it is written.",
        ),
    ),
    Target(
        name="mlpackage",
        runs_on="Core ML on iOS 16, macOS 13 and later",
        batch="one",
        precision="float16",
        format="mlpackage",
        why=(
            "Apple's own form: Xcode makes a class of it, and no runtime goes into the app.",
            "Float16, in which the neural engine computes whatever the file says.",
            "Core ML predicts on macOS only: elsewhere the file is written and looked through, but not run, "
            "and its manifest and card say so.",
            "Needs the extra coreml where it is written.",
        ),
    ),
    Target(
        name="ncnn",
        runs_on="ncnn on ARM CPUs and Vulkan",
        batch="one",
        format="ncnn",
        why=(
            "A runtime without dependencies, of half a megabyte, and fast on ARM; .param and .bin belong "
            "together.",
            "Input and output are in0 and out0, as pnnx names them.",
            "Needs the extra ncnn where it is written.",
        ),
    ),
    Target(
        name="mnn",
        runs_on="MNN on ARM CPUs, OpenCL, Vulkan and Metal",
        batch="one",
        format="mnn",
        why=(
            "One small runtime for Android and iOS, CPU and GPU.",
            "Converted from the ONNX graph. Needs the extra mnn where it is written.",
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
