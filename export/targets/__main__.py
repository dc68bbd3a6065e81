"""The table of the targets: `python -m export.targets`."""

from rich.table import Table

from engine.command.cli import Command, main
from engine.command.start import say
from engine.command.table import show
from export.formats import find_format
from export.targets import TARGETS


class ShowTargets(Command):
    """Print what `python -m export.onnx --target NAME` writes for each kind of device, and why.

    examples:
      python -m export.targets
      python -m export.onnx --target cpu-int8,qnn
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
        say("next: python -m export.onnx --target cpu-int8,qnn")
        return 0


if __name__ == "__main__":
    main(ShowTargets)
