"""Archives of NATS-Bench: read as its own package reads them, and never run.

The layout here is what nats_bench 1.8 writes with its own classes; the published archive itself is not at
hand.
"""

import bz2
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

from engine.errors import UserError
from oneshot.nasbench201.codes import all_codes, decode_cell, to_string
from oneshot.nasbench201.nats import read_nats


def dump(path: Path, value: Any) -> None:
    path.write_bytes(bz2.compress(pickle.dumps(value, protocol=4)))


def trainings(cell: int) -> dict[str, Any]:
    """One cell: 12 epochs with one seed, 200 with two, whose accuracies differ by 2."""
    sets = {
        "cifar10-valid": ["x-valid", "ori-test"],
        "cifar10": ["ori-test"],
        "cifar100": ["x-valid", "x-test"],
    }
    sets["ImageNet16-120"] = sets["cifar100"]
    found: dict[str, Any] = {}
    for epochs, seeds in ((12, [777]), (200, [777, 888])):
        results = {
            (name, seed): {
                "epochs": epochs,
                "train_acc1es": OrderedDict({0: 1.0}),
                "net_state_dict": None,
                "eval_acc1es": {f"{part}@{epochs - 1}": cell + epochs / 10 + 2 * i for part in parts},
            }
            for name, parts in sets.items()
            for i, seed in enumerate(seeds)
        }
        found[str(epochs)] = {"all_results": results, "dataset_seed": dict.fromkeys(sets, seeds)}
    return found


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "NATS-tss-v1_0-3ffb9-simple"
    folder.mkdir()
    dump(
        folder / "meta.pickle.pbz2",
        {"meta_archs": [to_string(decode_cell(code)) for code in all_codes()[:3]]},
    )
    for cell in range(3):
        dump(folder / f"{cell:06d}.pickle.pbz2", trainings(cell))
    return folder


def test_a_folder_and_a_file_hold_the_same(archive: Path, tmp_path: Path) -> None:
    cells = [to_string(decode_cell(code)) for code in all_codes()[:3]]
    whole = tmp_path / "NATS-tss-v1_0-3ffb9.pickle.pbz2"
    dump(
        whole,
        {
            "meta_archs": cells,
            "arch2infos": {cell: trainings(cell) for cell in range(3)},
            "evaluated_indexes": {0, 1, 2},
        },
    )
    found, columns = read_nats(archive, 200)
    assert found == cells
    assert columns["cifar10-val"] == columns["imagenet16-120-test"] == [21.0, 22.0, 23.0]
    assert read_nats(archive, 12)[1]["cifar100-test"] == [1.2, 2.2, 3.2]
    assert read_nats(whole, 200) == (found, columns)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_program_in_a_file_is_refused_and_does_not_run(archive: Path, tmp_path: Path) -> None:
    dump(archive / "000001.pickle.pbz2", {"12": Malicious(tmp_path / "ran")})
    with pytest.raises(UserError, match="more than plain data"):
        read_nats(archive, 12)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"no archive", bz2.compress(b""), bz2.compress(b"no pickle"), bz2.compress(pickle.dumps({}))],
)
def test_what_is_no_archive_is_one_sentence(archive: Path, content: bytes) -> None:
    (archive / "000002.pickle.pbz2").write_bytes(content)
    with pytest.raises(UserError):
        read_nats(archive, 12)
    (archive / "000002.pickle.pbz2").unlink()
    with pytest.raises(UserError, match="No such file"):
        read_nats(archive, 12)
