"""Networks as ExecuTorch programs (.pte): a command around the target `executorch`.

Needs `pip install 'ofa-toolkit[executorch]'`. `python -m export.onnx --target executorch` writes the same
files, beside those of other targets.
"""

import torch
from pydantic import Field
from rich.table import Table

from engine.command.cli import main
from engine.command.progress import progress
from engine.command.table import show
from engine.compute.device import pick_device
from engine.statistics import format_accuracy
from export.formats import find_format
from export.job import job_of_run
from export.pipeline import write_file
from export.source import open_export_source
from export.targets import find_target
from export.targets.target import Target
from ofa.trained import RunCommand

# No limit on lost accuracy: logits that are equal within the tolerance decide as torch does, except in a tie,
# and ties may cost any number of points.
ANY_DROP = 100.0


class ExecuTorch(RunCommand):
    """Write networks as .pte files for ExecuTorch with XNNPACK: float32, one image.

    Each file is compared with torch before it is kept.

    examples:
      python -m export.executorch --selected 600M
    """

    selected: str | None = Field(
        None, description="only this budget, as named in the run's selected/ folder; none: all of them"
    )
    arch: str | None = Field(
        None, description="instead: smallest, largest, a JSON file or JSON of an architecture"
    )
    untuned: bool = Field(
        False, description="take the supernet's weights even of subnets that ofa.tune tuned"
    )
    images: int | None = Field(256, ge=2, description="validation images to verify on; none: all")

    def execute(self) -> int:
        """Write every file, print the table, and return the exit status."""
        if self.threads:
            torch.set_num_threads(self.threads)
        target = find_target("executorch")
        find_format(target.format).check_installed(to_write=True)
        with self.write_lock():
            return self._export(target)

    def _export(self, target: Target) -> int:
        """Write the files of the run's networks."""
        source = open_export_source(self.run, pick_device(self.device), self.data, self.untuned)
        networks = source.networks(self.selected, self.arch)
        table = Table("file", "size", "torch", "file", "relative error", "verdict")
        failed = 0
        with progress("export", len(networks)) as advance:
            for name, build, _ in networks:
                job = job_of_run(source, name, build(), None, self.images, 0)
                path = self.run / "export" / target.file_name(name)
                written = write_file(job, target, path, ANY_DROP)
                failed += bool(written.complaint)  # the other networks are written all the same
                size = f"{written.manifest.bytes / 1e6:.2f} MB" if written.manifest else "-"
                # There is no graph that could be refused before anything is compared.
                assert written.parity is not None, (
                    "a file that is not written from a graph is always compared"
                )
                table.add_row(
                    path.name,
                    size,
                    format_accuracy(job.reference.accuracy, written.parity.images),
                    format_accuracy(written.parity.accuracy, written.parity.images),
                    f"{written.parity.relative_error:.1e}",
                    written.complaint or "equal",
                )
                advance(path.name)
        show(table)
        print(f"written to {self.run / 'export'}")
        for name, _, note in networks:
            if note:
                print(f"{name} is {note}; --untuned takes the supernet's weights")
        return 1 if failed else 0


if __name__ == "__main__":
    main(ExecuTorch)
