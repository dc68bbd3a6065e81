"""What export has to know about a kind of model file. `export.formats` lists the kinds."""

import importlib.metadata
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from numpy.typing import NDArray

from engine.command.install import install_command
from engine.errors import UserError

# Imported for their types only: the process that measures the memory of a file must hold neither.
if TYPE_CHECKING:
    import onnx
    from torch import nn

Array = NDArray[Any]
# a16w8: activations of 16 bits, weights of 8.
Precision = Literal["float32", "float16", "int8", "a16w8"]
Run = Callable[[Array], Array]  # inputs (N, ...) as the file takes them -> outputs (N, K)
OperatorTime = tuple[str, int, float]  # operator, executed nodes, microseconds of one run


class LoadedModel(NamedTuple):
    """A model file in its runtime, as a program on a device loads it.

    Args:
        shape: of the input for one image.
        metadata: what the file says of itself; its values are JSON.
        run: runs the file once on a random image and returns its first output.
    """

    shape: list[int]
    metadata: dict[str, str]
    run: Callable[[], Array]


class Quantization(NamedTuple):
    """Which numbers of a network become which integers.

    Args:
        activation_bits: 8 or 16; weights always have 8.
        every_operator: also those that CPUs have no integer kernel for, as NPUs want it.
    """

    activation_bits: int = 8
    every_operator: bool = False


class Runtime(ABC):
    """A program that runs model files.

    Attributes:
        runtime: its name in sentences.
        package: its distribution, which is also the module to import.
        extra: the extra of ofa-toolkit that installs it; none if the toolkit needs it anyway.
        writers: further modules of that extra, without which files can be run but not written.
    """

    runtime: ClassVar[str]
    package: ClassVar[str]
    extra: ClassVar[str | None] = None
    writers: ClassVar[tuple[str, ...]] = ()

    def installed(self) -> bool:
        """Whether the runtime can be imported here."""
        # find_spec does not import it, which takes seconds for some runtimes.
        return self.extra is None or importlib.util.find_spec(self.package) is not None

    def version(self) -> str:
        """The installed version; empty if the package says none."""
        return _version(self.package)

    def versions(self) -> dict[str, str]:
        """The versions of what writes and runs its files, by package."""
        return {self.package: self.version()} | {name: _version(name) for name in self.writers}

    def check_installed(self, to_write: bool = False) -> None:
        """Do nothing if the runtime is installed.

        Args:
            to_write: also ask for what writes its files.

        Raises:
            UserError: it is not.
        """
        if not self.installed():
            assert self.extra is not None, "a runtime without an extra is always installed"
            raise UserError(f"{self.runtime} is not installed; run {install_command(self.extra)}.")
        for module in self.writers if to_write else ():
            if importlib.util.find_spec(module) is None:
                assert self.extra is not None, "what the toolkit needs anyway is always installed"
                raise UserError(
                    f"{module} is not installed, which writes files for {self.runtime}; run "
                    f"{install_command(self.extra)}."
                )

    @abstractmethod
    def open(self, path: Path, exact: bool = True) -> Run:
        """The file as a function, with as many threads as torch has.

        Args:
            path: the model file.
            exact: compute as the file says, for a comparison of numbers. Otherwise the runtime may compute
                in what is fastest on this CPU: choose that to measure time.

        Raises:
            UserError: the file is missing or damaged, or the runtime is not installed.
        """


class Format(Runtime):
    """A kind of model file: how it is written, run and measured. One file of this package defines one.

    A format defines `open` and `load`, and either `write_graph` or `write_module`, as `written_from` says.
    A format that is written from the module and has 8-bit files defines `write_quantized` too. The other
    methods have defaults that suit a runtime without profiler, which runs here.

    Attributes:
        name: as in the field `format` of a target.
        suffix: how the names of its files end; may have two dots.
        written_from: "graph": the target's ONNX graph; "module": the torch module itself.
        precisions: those that a target may ask for.
        one_image: whether a file takes one image at a time, so that a target must say `batch: one`.
        side_suffixes: files that belong to a model file and have its name with these endings.
        part_suffixes: those of them that hold a part of the model; the manifest's size and SHA-256 cover
            them.
        chips: the names that a target may give as `chip`, if a file is for one chip.
        manifest_suffix: how the manifest's name ends.
        in_example: whether the bundle's classify.py, which has only onnxruntime, runs its files.
        in_browser: whether onnxruntime-web runs its files.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    written_from: ClassVar[Literal["graph", "module"]]
    precisions: ClassVar[tuple[Precision, ...]] = ("float32",)
    one_image: ClassVar[bool] = False
    side_suffixes: ClassVar[tuple[str, ...]] = ()
    part_suffixes: ClassVar[tuple[str, ...]] = ()
    chips: ClassVar[tuple[str, ...]] = ()
    manifest_suffix: ClassVar[str] = ".json"
    in_example: ClassVar[bool] = False
    in_browser: ClassVar[bool] = False

    # Not abstract: a format is written from one of the two, and `written_from` says from which.
    def write_graph(self, model: "onnx.ModelProto", path: Path, chip: str | None = None) -> None:
        """Write an ONNX model, and the side files beside it.

        Args:
            model: in the precision of the target.
            path: the file, in a folder for temporary files.
            chip: one of `chips`, if the format has some; none: the first.
        """
        raise NotImplementedError

    def write_module(self, module: "nn.Module", example: Array, path: Path, precision: Precision) -> None:
        """Write a torch module (eval mode, CPU, float32) that takes inputs like `example` (1, ...).

        Args:
            module: the network.
            example: one input.
            path: the file, in a folder for temporary files.
            precision: float32 or float16, if the format has it.
        """
        raise NotImplementedError

    def write_quantized(
        self, module: "nn.Module", calibration: Sequence[Array], path: Path, scheme: "Quantization"
    ) -> None:
        """Write a torch module with 8-bit weights and integer activations, every layer of it.

        Args:
            module: as in `write_module`.
            calibration: batches of inputs (N, ...), from which the ranges are taken.
            path: the file, in a folder for temporary files.
            scheme: which integers.
        """
        raise NotImplementedError

    def facts(self, path: Path) -> dict[str, Any]:
        """Further keys of the manifest, which only this format can tell of a file."""
        return {}

    def not_run_here(self) -> str:
        """Why no file can be run on this machine, as a clause; empty if they can."""
        return ""

    def not_timed_here(self) -> str:
        """Why the time of a file on this machine tells nothing, as a clause; empty if it does."""
        return self.not_run_here()

    def import_runtime(self) -> None:
        """Import what runs the files, so that memory taken afterwards is that of a file."""

    @abstractmethod
    def load(self, path: Path, threads: int) -> LoadedModel:
        """Load a file with nothing around it, to measure what that costs.

        Raises:
            ValueError: its input is not one image of a fixed size. The message is half a sentence.
        """

    def timed_run(self, path: Path, shape: list[int], threads: int) -> Callable[[], object]:
        """A function that runs the file once on a random image of `shape`, for the clock."""
        return self.load(path, threads).run

    def profile(self, path: Path, shape: list[int], threads: int) -> list[OperatorTime]:
        """Time by operator, the longest first; nothing if the runtime has no profiler."""
        return []

    def read_graph(self, path: Path) -> "onnx.ModelProto | None":
        """The ONNX graph in a file; none if the file holds none."""
        return None

    def has(self, path: Path) -> bool:
        """Whether a file's name ends as those of this format."""
        return path.name.endswith(self.suffix)

    def manifest_path(self, path: Path) -> Path:
        """Where the manifest of a model file is."""
        return self._beside(path, self.manifest_suffix)

    def side_files(self, path: Path) -> list[Path]:
        """What belongs to a model file beside its manifest, whether it is there or not."""
        return [self._beside(path, suffix) for suffix in self.side_suffixes]

    def parts(self, path: Path) -> list[Path]:
        """The files that hold the model: the model file itself first."""
        return [path, *(self._beside(path, suffix) for suffix in self.part_suffixes)]

    def _beside(self, path: Path, suffix: str) -> Path:
        """The file of the same name with another ending."""
        # Not with_suffix, which replaces the last part only of an ending with two dots.
        return path.with_name(path.name.removesuffix(self.suffix) + suffix)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
