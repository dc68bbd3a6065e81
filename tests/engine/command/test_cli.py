"""A bad flag, recipe or value is one sentence and exit 2; every command explains itself."""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.command.cli import main, parse
from engine.errors import UserError
from ofa.convert import Convert
from ofa.train import Train
from oneshot.search import Search
from predictors.select import Select


def test_flags_lie_over_the_recipe_over_the_defaults(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("data: {name: digits}\nspace: digits\nepochs: 7\nbatch_size: 32\nsgd: {lr: 0.3}\n")
    train = parse(Train, ["--config", str(recipe), "--epochs", "9", "--sgd.momentum", "0.5"])
    assert (train.epochs, train.batch_size, train.sgd.lr, train.sgd.momentum, train.seed) == (
        9,
        32,
        0.3,
        0.5,
        0,
    )


def test_changing_the_data_drops_the_recipes_data_section() -> None:
    train = parse(Train, ["--config", "ofa/imagefolder", "--data.name", "npz", "--data.path", "x.npz"])
    assert train.data.name == "npz"
    assert not hasattr(train.data, "crop_scale")


def test_a_recipe_lies_over_its_base(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(
        "base: ofa/attentive_nas\nepochs: 7\nsandwich: {sampling: {mode: worstup}}\n"
    )
    train = parse(Train, ["--config", str(tmp_path / "one.yaml"), "--batch-size", "32"])
    assert (train.epochs, train.batch_size, train.space, train.sandwich.drop_connect_stages) == (
        7,
        32,
        "attentive_nas",
        2,
    )
    assert train.sandwich.sampling.mode == "worstup"
    (tmp_path / "two.yaml").write_text(f"base: {tmp_path / 'three.yaml'}\n")
    (tmp_path / "three.yaml").write_text(f"base: {tmp_path / 'two.yaml'}\n")
    with pytest.raises(UserError, match="is its own base; remove the 'base' line"):
        parse(Train, ["--config", str(tmp_path / "two.yaml")])


def test_a_section_may_leave_out_its_name(tmp_path: Path) -> None:
    convert = parse(Convert, ["a.pth", "--from", "timm", "--data.path", "photos"])
    assert (convert.data.name, convert.data.size, convert.data.path.name) == ("imagefolder", 224, "photos")
    train = parse(
        Train,
        [
            "--sandwich.sampling.name",
            "attentive",
            "--sandwich.sampling.judge.candidates",
            "5",
            "--data.crop",
            "2",
        ],
    )
    assert (train.sandwich.sampling.judge.name, train.sandwich.sampling.judge.candidates) == ("batch_loss", 5)
    assert (train.data.name, train.data.crop) == ("digits", 2)
    with pytest.raises(UserError, match=r"there is no field 'sandwich\.sampling\.judge'"):
        parse(Train, ["--sandwich.sampling.judge.candidates", "5"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--data npz --data.path x.npz", {"data": "npz"}),
        ("--data=npz --data.path=x.npz", {"data": "npz"}),
        ("--data.path x.npz --data npz", {"data": "npz"}),
        ("--method gdas", {"method": "gdas"}),
        (
            "--method gaea --method.level single --method.epochs 3",
            {"method": "gaea", "method.level": "single", "method.epochs": 3},
        ),
        (
            "--method darts --method.relaxation gumbel_hard",
            {"method": "darts", "method.relaxation": "gumbel_hard"},
        ),
        (
            "--method.relaxation=gumbel_hard --method.relaxation.tau-end 1",
            {"method": "darts", "method.relaxation": "gumbel_hard"},
        ),
        ("--penalties beta_decay,cost", {"penalties": ["beta_decay", "cost"]}),
        ("--penalties=beta_decay", {"penalties": ["beta_decay"]}),
        ("--penalties beta_decay --penalties cost", {"penalties": ["beta_decay", "cost"]}),
        ('--penalties [{"name":"cost","of":"params"}]', {"penalties": ["cost"], "penalties.of": ["params"]}),
        ('--penalties {"name":"cost","of":"params"}', {"penalties": ["cost"], "penalties.of": ["params"]}),
        ("--method pr_darts --method.penalties ''", {"method.penalties": []}),
        ("--method.penalties 'beta_decay, cost'", {"method.penalties": ["beta_decay", "cost"]}),
    ],
)
def test_sections_by_their_names(words: str, said: dict[str, object]) -> None:
    search = parse(Search, shlex.split(words.replace('"', '\\"')))
    for path, wanted in said.items():
        found: Any = search
        for part in path.split("."):
            found = (
                [getattr(one, part) for one in found] if isinstance(found, tuple) else getattr(found, part)
            )
        name = [one.name for one in found] if isinstance(found, tuple) else getattr(found, "name", found)
        assert name == wanted


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--epochs 3 --method", "--method needs a name after it"),
        ("--method --epochs 3", "--method needs a name after it"),
        ("--method ''", "there is no method ''"),
        ("--method darts,gdas", "there is no method 'darts,gdas'"),
        ("--data -1", "--data needs a name"),
        ("--penalties beta-decay", "there is no penalties.0 'beta-decay'; did you mean 'beta_decay'"),
        ("--penalties beta_decay,,wight", "there is no penalties.1 'wight'"),
        ("--penalties [", "penalties: Missing end delimiter"),
        ("--method.relaxation soft", "there is no method.relaxation 'soft'"),
        ("--channel 3", "did you mean '--channels'"),
    ],
)
def test_sections_by_wrong_names(words: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as complaint:
        parse(Search, shlex.split(words))
    assert "\n" not in str(complaint.value)


def test_budgets_are_counts() -> None:
    assert parse(Select, ["--flops", "600M,0.5G"]).flops == (600_000_000, 500_000_000)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--epochz", "3"], "did you mean '--epochs'"),
        (["--epochs", "0"], "^command line: 'epochs' = '0' is not valid"),
        (["--sgd.lr", "x"], "^command line: 'sgd.lr' = 'x' is not valid"),
        (["--epochs", "many"], "'epochs' = 'many' is not valid"),
        (["--data.name", "npz"], "'data.path' is missing; give it in the recipe or as --data.path"),
        (["--data.name", "mnist"], "mnist"),
        (["--config", "nowhere.yaml"], "There is no recipe 'nowhere.yaml'"),
        (["--sgd.schedule.name", "linear"], "linear"),
    ],
)
def test_bad_words(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse(Train, words)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("epochz: 3", "there is no field 'epochz'; did you mean 'epochs'"),
        ("sgd: {lrate: 3}", "there is no field 'sgd.lrate'; did you mean 'lr'"),
        ("data: {name: npz, pth: x}", "there is no field 'data.pth'; did you mean 'path'"),
        ("sandwich: {droput: 0.1}", "did you mean 'dropout'"),
    ],
)
def test_yaml_typos_name_the_nearest_field(tmp_path: Path, line: str, said: str) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"{line}\nspace: digits\nbatch_size: 4\n")
    with pytest.raises(UserError, match=f"^{re.escape(str(recipe))}: .*{said}"):
        parse(Train, ["--config", str(recipe), "--seed", "1"])


def test_main_prints_one_sentence_and_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(Train, ["--epochs", "0"])
    out = capsys.readouterr()
    assert stop.value.code == 2
    assert out.out == ""
    assert out.err.startswith("error: ")
    assert out.err.count("\n") == 1


@pytest.mark.slow
def test_as_a_process() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "predictors.select", "--flops", "600Q"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr == "error: command line: --flops: '600Q' is not a count; "
        "write it as 600M, 0.6G, 600e6 or 600000000.\n"
    )
