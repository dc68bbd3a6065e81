"""The files of NATS-Bench (Dong et al. 2021, arXiv:2009.00437), read without running what is in them.

`NATS-tss-v1_0-3ffb9-simple` is a folder with one bz2-compressed pickle a cell;
`NATS-tss-v1_0-3ffb9.pickle.pbz2` is one pickle of all cells. A pickle may run any program when it is loaded.
These hold nothing but dicts, lists, strings and numbers, so the reader here builds only those and refuses a
file that asks for more. The older `NAS-Bench-201-v1_1-096897.pth` is not supported.
"""

import bz2
import io
import pickle
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any, Literal

from engine.command.progress import progress
from engine.errors import UserError, shortened

MOST_BYTES = 8 * 1000**3  # of one unpacked file; the archive in one file has 2 GB
ARCHIVE = ".pickle.pbz2"
# The only classes that a file may name; none of them runs a program when it is built.
HARMLESS = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    ("builtins", "list"): list,
}
SETS = {  # column: (training, set that was evaluated)
    "cifar10-val": ("cifar10-valid", "x-valid"),
    "cifar10-test": ("cifar10", "ori-test"),
    "cifar100-val": ("cifar100", "x-valid"),
    "cifar100-test": ("cifar100", "x-test"),
    "imagenet16-120-val": ("ImageNet16-120", "x-valid"),
    "imagenet16-120-test": ("ImageNet16-120", "x-test"),
}


class _Plain(pickle.Unpickler):
    """Builds plain data; whatever else a pickle names is refused before it is imported."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in HARMLESS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return HARMLESS[module, name]


def read_nats(path: Path, epochs: Literal[12, 200]) -> tuple[list[str], dict[str, list[float]]]:
    """The cells of an archive, and a column of accuracies for each data set and split.

    Args:
        epochs: after which of the two trainings.

    Returns:
        The cells as strings, and the columns in percent, means over seeds.

    Raises:
        UserError: a file is missing, damaged, or holds more than plain data.
    """
    # A folder has a file for each cell, so memory stays small.
    whole = None if path.is_dir() else _load(path)
    try:
        meta = whole or _load(path / f"meta{ARCHIVE}")
        cells = [str(cell) for cell in meta["meta_archs"]]
        columns: dict[str, list[float]] = {column: [] for column in SETS}
        with progress(f"read {path.name}", len(cells)) as advance:
            for index in range(len(cells)):
                trainings = whole["arch2infos"][index] if whole else _load(path / f"{index:06d}{ARCHIVE}")
                for column, (training, evaluated) in SETS.items():
                    columns[column].append(_mean_accuracy(trainings[str(epochs)], training, evaluated))
                advance("")
    except UserError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise UserError(
            f"{path} is not laid out as an archive of NATS-Bench's topology space ({shortened(repr(error))})."
        ) from None
    return cells, columns


def _mean_accuracy(training: Any, dataset: str, evaluated: str) -> float:
    """Mean over seeds of the last epoch's accuracy."""
    results = [training["all_results"][dataset, seed] for seed in training["dataset_seed"][dataset]]
    accuracies = [float(result["eval_acc1es"][f"{evaluated}@{result['epochs'] - 1}"]) for result in results]
    return sum(accuracies) / len(accuracies)


def _load(path: Path) -> Any:
    try:
        with bz2.open(path) as file:
            # A few bytes of an archive can stand for any number of zeros.
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ValueError(f"it unpacks to more than {MOST_BYTES // 1000**3} GB")
        return _Plain(io.BytesIO(content)).load()
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than plain data ({error}), so it is not read; export a CSV from it instead."
        ) from None
    # Everything that a damaged pickle makes Python raise, from a missing mark to a list as the key of a dict.
    except (
        OSError,
        EOFError,
        ValueError,
        LookupError,
        AttributeError,
        TypeError,
        RuntimeError,
        MemoryError,
        OverflowError,
    ) as error:
        reason = getattr(error, "strerror", None) or shortened(str(error))
        raise UserError(f"{path} cannot be read as a file of NATS-Bench: {reason}.") from None
