"""Networks as ExecuTorch programs (.pte) that XNNPACK runs: for apps on Android and iOS that use torch's own
runtime.

Needs `pip install 'ofa-toolkit[executorch]'`. The file takes one image; its manifest is
`<subnet>.executorch.json`.
"""

import importlib.util
import tempfile
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from rich.table import Table

from engine.command.cli import main
from engine.command.progress import progress
from engine.command.table import show
from engine.compute.device import pick_device
from engine.errors import UserError
from engine.onnx_file import fold_batch_norm
from engine.run import versions, write_json
from export.graph import Array, silent
from export.job import subject_of
from export.manifest import digest
from export.pipeline import Subject
from export.source import open_source
from export.verify import Parity, parity_of
from ofa.trained import RunCommand


class ExecuTorch(RunCommand):
    """Write networks as .pte files for ExecuTorch with XNNPACK (float32, one image), each compared with torch
    before it is kept.

    examples:
      python -m export.executorch --selected 600M
    """

    selected: str | None = Field(
        None, description="only this budget, as named in the run's selected/ folder; none: all of them"
    )
    arch: str | None = Field(
        None, description="instead: smallest, largest, a JSON file or JSON of an architecture"
    )
    images: int | None = Field(256, ge=2, description="validation images to verify on; none: all")

    def execute(self) -> int:
        """Write each, table, exit status."""
        if self.threads:
            torch.set_num_threads(self.threads)
        _installed()
        source = open_source(self.run, pick_device(self.device), self.data)
        choices = source.choices(self.selected, self.arch)
        table = Table("file", "size", "torch", "file", "relative error", "verdict")
        failed = 0
        with progress("export", len(choices)) as advance:
            for choice in choices:
                subject = subject_of(source, choice.name, choice.build(), None, self.images, 0)
                path = self.run / "export" / f"{choice.name}.pte"
                parity, complaint = write_pte(subject, path)
                failed += bool(complaint)
                size = "-" if complaint else f"{path.stat().st_size / 1e6:.2f} MB"
                numbers = (
                    f"{subject.reference.accuracy:.2%}",
                    f"{parity.accuracy:.2%}",
                    f"{parity.relative_error:.1e}",
                )
                table.add_row(path.name, size, *numbers, complaint or "equal")
                advance(path.name)
        show(table)
        print(f"written to {self.run / 'export'}")
        return 1 if failed else 0


def write_pte(subject: Subject, path: Path) -> tuple[Parity, str]:
    """The network as `path` with its manifest beside it, if its logits are torch's; the comparison, and a
    complaint or nothing.

    Raises:
        UserError: ExecuTorch is not installed.
    """
    _installed()
    manifest = path.with_suffix(".executorch.json")
    for stale in (path, manifest):
        stale.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        candidate = Path(folder) / path.name
        candidate.write_bytes(_program(subject))
        parity = parity_of(subject.reference, lambda x: run_pte(candidate, x))
        complaint = parity.complaint("float32")
        if not complaint:
            candidate.replace(path)
            facts = {
                "file": path.name,
                "target": "executorch",
                "precision": "float32",
                **subject.facts,
                "parity": parity._asdict(),
            }
            write_json(
                manifest,
                facts | {"bytes": path.stat().st_size, "sha256": digest(path), "versions": versions()},
            )
    return parity, complaint


def _program(subject: Subject) -> bytes:
    """The module for one image, given to XNNPACK wherever that can take it."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with silent():
        program = torch.export.export(
            fold_batch_norm(subject.module), (torch.from_numpy(subject.example[:1]),)
        )
        return bytes(
            to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch().buffer
        )


def run_pte(path: Path, x: Array) -> Array:
    """Logits (N, K) of images x in ExecuTorch's own runtime on this CPU, one at a time."""
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(path).load_method("forward")
    assert method is not None
    return np.concatenate(
        [method.execute([torch.from_numpy(x[i : i + 1])])[0].numpy() for i in range(len(x))]
    )


def _installed() -> None:
    if importlib.util.find_spec("executorch") is None:
        raise UserError("ExecuTorch is not installed; run pip install 'ofa-toolkit[executorch]'.")


if __name__ == "__main__":
    main(ExecuTorch)
