"""Measure the accuracy of given architectures of a trained run, each with recalibrated BatchNorm."""

from pydantic import Field
from rich.console import Console
from rich.table import Table

from engine.command.cli import main
from engine.command.progress import progress
from engine.config import format_count
from engine.data.dataset import Split
from ofa.calibration import EVALUATION_BATCH, subnet_accuracy
from ofa.space.published import find_arch
from ofa.trained import RunCommand
from ofa.tuned import find_tuned, name_of


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
    untuned: bool = Field(
        False, description="take the supernet's weights even of subnets that ofa.tune tuned"
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
                tuned = None
                if not (self.untuned or trained.model.arch):
                    tuned = find_tuned(self.run, name_of(name), arch)
                subnet = tuned.subnet(trained) if tuned else trained.subnet(arch)
                share = subnet_accuracy(subnet, trained.data.batches(self.split, EVALUATION_BATCH))
                accuracy = f"{share:.2%}"
                shown = f"{name} ({tuned})" if tuned else name
                table.add_row(shown, format_count(macs), format_count(params), accuracy)
                advance(name)
        Console().print(table)
        return 0


if __name__ == "__main__":
    main(Evaluate)
