"""Put what belongs to one exported network into a folder that needs nothing else: files, labels, example,
manifest and model card."""

import os
import shlex
from pathlib import Path

from pydantic import Field

from engine.command.cli import Command, main
from engine.command.start import say
from engine.errors import UserError
from engine.run import Run
from engine.runs.lock import write_lock
from export.bundle.write import write_bundle
from export.manifest import exported_files, read_manifest
from ofa.trained import DEFAULT_RUN


class MakeBundle(Command):
    """Make a folder of every exported network that needs nothing else.

    It is export/NAME/ with the model files, labels.txt, manifest.json, README.md, classify.py, Prepare.kt,
    Prepare.swift and 8 image samples. classify.py runs .onnx and .ort files with nothing but onnxruntime,
    numpy and pillow: python classify.py IMAGE. With --check it proves a copy on any machine: it prepares the
    samples again, and compares every step and the outputs with what is bundled. Prepare.kt and Prepare.swift
    prepare images in an app. README.md is the model card, which says what the manifest says, in sentences.
    Times of python -m export.benchmark, where it was run before, are included.

    examples:
      python -m export.bundle                        every network in runs/supernet/export
      python -m export.bundle --run runs/photos --selected 600M
    """

    run: Path = Field(DEFAULT_RUN, description="folder of a finished run with exported files")
    selected: str | None = Field(
        None, description="only this budget, or whatever the file is called; none: all"
    )
    samples: Path | None = Field(
        None, description="folder whose first 8 images become the samples; none: images are drawn"
    )

    def execute(self) -> int:
        """Write the folders."""
        Run.open(self.run)
        with write_lock(self.run):
            return self._bundle()

    def _bundle(self) -> int:
        run = Run.open(self.run)
        networks: dict[str, list[Path]] = {}
        for path in exported_files(self.run / "export"):
            networks.setdefault(read_manifest(path).subnet, []).append(path)
        if self.selected is not None and self.selected not in networks:
            raise UserError(
                f"Run '{self.run}' has no exported network '{self.selected}'; it has {', '.join(networks)}."
            )
        names = [self.selected] if self.selected is not None else list(networks)
        for name in names:
            folder = write_bundle(run, name, networks[name], self.samples)
            print(f"{folder}: {', '.join(sorted(os.listdir(folder)))}")
        first = self.run / "export" / names[0]
        say(f"next: python -m export.demo {shlex.quote(str(first))}")
        return 0


if __name__ == "__main__":
    main(MakeBundle)
