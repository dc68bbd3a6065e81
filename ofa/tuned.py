"""The tuned subnets of a run: `tuned/NAME/`, each a run folder of one architecture."""

import math
import shlex
from pathlib import Path
from typing import NamedTuple

from engine.checkpoint import check_digests, weights_digest
from engine.command.start import say
from engine.config import Config, counted, format_count, validate
from engine.data.dataset import Split
from engine.data.sources import DataConfig
from engine.errors import UserError
from engine.run import Run, read_json, selected_files
from engine.statistics import counts_to_text
from ofa.calibration import prepare
from ofa.cost import cost_of
from ofa.space.arch import Arch, largest, smallest
from ofa.space.published import find_arch
from ofa.space.space import Space
from ofa.subnet import Subnet
from ofa.trained import SupernetModel, TrainedSupernet, Tuned, load_network, run_flag

TUNED = "tuned"  # the folder in a run folder


def selected_archs(run: Path, space: Space, names: str) -> dict[str, Arch]:
    """The architectures that predictors.select selected in a run, by budget.

    Args:
        run: the run folder.
        space: of the run.
        names: budgets separated by commas, or `all`.

    Raises:
        UserError: nothing is selected, or not what `names` says.
    """
    files = selected_files(run)
    if not files:
        raise UserError(f"{nothing_selected(run)}, or name an architecture with --arch.")
    wanted = list(files) if names == "all" else [name.strip() for name in names.split(",")]
    found, stated = {}, {}
    for name in wanted:
        if name not in files:
            raise UserError(f"Run '{run}' has no selected subnet '{name}'; it has {', '.join(files)}.")
        found[name] = find_arch(space, str(files[name]))
        stated[str(files[name])] = str(read_json(files[name]).get("weights_sha256", ""))
    check_digests(run, stated, select_again(run))
    return found


def find_subnet(run: Path, space: Space, name: str) -> Arch:
    """The architecture that --arch names: a selected subnet of the run, or what `find_arch` takes.

    Raises:
        UserError: there is none of that name, or it was selected from other weights.
    """
    files = selected_files(run)
    if name in files:
        return selected_archs(run, space, name)[name]
    return find_arch(space, name, list(files))


def nothing_selected(run: Path) -> str:
    """That a run has no selected subnet, and what selects one: a sentence without its full stop."""
    return (
        f"Run '{run}' has no selected subnet; run python -m predictors.select{run_flag(run)} "
        f"{example_flops(run)} first"
    )


def example_flops(run: Path) -> str:
    """`--flops` with a budget in the middle of the run's space, between its smallest and largest subnet."""
    model = validate(SupernetModel, read_json(run / "model.json"), str(run / "model.json"))
    ends = []
    for arch in (smallest(model.space), largest(model.space)):
        ends.append(cost_of(model.space, arch, len(model.classes), model.channels)[0])
    return f"--flops {format_count(math.sqrt(math.prod(ends)), digits=2)}"


def select_again(run: Path) -> str:
    """The end of a sentence about a selected subnet that is of other weights than the run has."""
    return f"select again with python -m predictors.select{run_flag(run)}"


def check_split(run: Path, data: DataConfig) -> None:
    """Refuse shares of held-out images that are not the run's: some of its test images would be trained on.

    Args:
        run: the run folder of the supernet.
        data: the images that are asked for.

    Raises:
        UserError: a share differs.
    """
    trained_on = Run(run).config.get("data", {})
    for name in ("val", "test"):
        given, before = getattr(data, name, None), trained_on.get(name)
        if name in trained_on and given != before:
            raise UserError(
                f"Run '{run}' held images out by data.{name} = {before}, and {given} would train on some of "
                f"them; leave out --data.{name}."
            )


def export_flags(run: Path, out: Path, name: str, arch: str | None) -> str:
    """The flags by which export finds what was tuned, after a space.

    Args:
        run: the run folder of the supernet.
        out: the folder of the tuned subnets.
        name: of the first of them.
        arch: what --arch said; None: the subnets are selected ones.
    """
    if out.resolve() != (run / TUNED).resolve():
        return f" --run {shlex.quote(str(out / name))}"
    return run_flag(run) + (f" --arch {shlex.quote(arch)}" if arch else "")


def name_of(arch: str) -> str:
    """The name of an architecture that a flag gives: that of its file; JSON is called subnet."""
    # No Path.stem, which would make 2 of 2.5M.
    return "subnet" if arch.lstrip().startswith("{") else Path(arch).name.removesuffix(".json")


class TunedSubnet(NamedTuple):
    """A tuned subnet that fits the run: its folder, and what its model.json says of it."""

    path: Path
    facts: Tuned

    def __str__(self) -> str:
        epochs = counted(self.facts.epochs, "epoch")
        rounded = f", rounded to {self.facts.qat}" if self.facts.qat else ""
        return f"tuned for {epochs}{rounded}, teacher: {self.facts.teacher}"

    def subnet(self, trained: TrainedSupernet) -> Subnet:
        """The subnet with its tuned weights, calibrated on the images of the run; eval mode."""
        model, network = load_network(self.path)
        assert model.arch is not None
        return prepare(network.to(trained.device), model.arch, trained.data, model.calibration_images)


def tuned_or_taken(trained: TrainedSupernet, arch: Arch, tuned: TunedSubnet | None) -> Subnet:
    """The tuned subnet, or without one `arch` as the supernet gives it; calibrated, eval mode."""
    return tuned.subnet(trained) if tuned else trained.subnet(arch)


class SubnetToMeasure(Config):
    """A subnet as a task that ranks share: its name, such as its budget, and whether it has tuned weights."""

    name: str
    arch: Arch
    tuned: bool = False

    def confusion(self, trained: TrainedSupernet, split: Split) -> str:
        """What the subnet takes each class of a split for, as `counts_to_text` writes it."""
        # Found again, since this process may not be the one that found it first.
        tuned = find_tuned(trained.run.path, self.name, self.arch) if self.tuned else None
        subnet = tuned_or_taken(trained, self.arch, tuned)
        return counts_to_text(trained.confusion(subnet, split))


def tuned_digest(run: Path, name: str) -> str | None:
    """SHA-256 of the weights that a subnet of a run was tuned to; None without a finished tuning."""
    folder = run / TUNED / name
    return weights_digest(folder) if Run(folder).finished else None


def find_tuned(run: Path, name: str, arch: Arch) -> TunedSubnet | None:
    """The tuned weights of a subnet; None if it was not tuned, or not from these weights.

    A tuned folder that does not fit is not used; a printed sentence says why, and what to do.

    Args:
        run: the run folder of the supernet.
        name: of the subnet, such as its budget.
        arch: of the subnet, as `find_arch` returns it.
    """
    path = run / TUNED / name
    if not (path / "model.json").exists():
        return None
    model = validate(SupernetModel, read_json(path / "model.json"), str(path / "model.json"))
    reason = None
    if model.tuned is None:
        reason = "is not of ofa.tune"
    elif not Run(path).finished:
        reason = "is not finished"
    elif model.tuned.arch != arch:
        reason = f"is of another architecture than '{name}' has now"
    elif model.tuned.supernet_sha256 != weights_digest(run):
        reason = "started from other weights than the supernet has now"
    if model.tuned is not None and reason is None:
        return TunedSubnet(path, model.tuned)
    if reason == "is not finished":
        remedy = "continue with the command that began it and --resume"
    elif (run / "selected" / f"{name}.json").exists():
        remedy = f"tune it with python -m ofa.tune{run_flag(run)} --selected {name} --overwrite"
    else:
        remedy = f"tune it with python -m ofa.tune{run_flag(run)}, the same --arch and --overwrite"
    say(f"'{path}' {reason}, so '{name}' is taken untuned; {remedy}.")
    return None
