"""Measure the accuracy of given architectures of a trained run, each with recalibrated BatchNorm."""

from pydantic import Field
from rich.console import Console
from rich.table import Table

from engine.command.cli import main
from engine.command.progress import progress
from engine.config import format_count
from engine.data.dataset import Split
from ofa.space.published import find_arch
from ofa.trained import RunCommand


class Evaluate(RunCommand):
    """Measure architectures of a trained supernet, or the network of a run that trained one alone.

    examples:
      python -m ofa.evaluate
      python -m ofa.evaluate --arch runs/supernet/selected/600M.json,largest --split test
      python -m ofa.evaluate --run runs/attentive_nas --arch attentive_nas_a0,attentive_nas_a6
    """

    arch: str = Field(
        "smallest,largest",
        description=(
            "smallest, largest, published names or JSON files, separated by commas; or JSON; ignored if the "
            "run trained one architecture alone"
        ),
    )
    split: Split = Field("val", description="val, or test for a final report")

    def execute(self) -> int:
        """Measure each and print a table."""
        trained = self.open()
        # A run of a single architecture has nothing to choose from.
        if trained.model.arch:
            archs = {"alone": trained.model.arch}
        else:
            # JSON has commas of its own.
            names = [self.arch] if self.arch.lstrip().startswith("{") else self.arch.split(",")
            archs = {name: find_arch(trained.space, name) for name in names}
        table = Table("architecture", "MACs", "params", f"{self.split} accuracy")
        with progress("evaluate", len(archs)) as advance:
            for name, arch in archs.items():
                macs, params = trained.cost(arch)
                accuracy = f"{trained.accuracy(arch, self.split):.2%}"
                table.add_row(name, format_count(macs), format_count(params), accuracy)
                advance(name)
        Console().print(table)
        return 0


if __name__ == "__main__":
    main(Evaluate)
