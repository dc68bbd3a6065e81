"""Help: one screen that teaches, for every command at once; everything on request; no machine's words."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from engine.command.__main__ import command_of, page
from engine.command.cli import Command, parse
from engine.command.flags import flag_name, flag_names, flags_of
from engine.command.help import everything
from engine.command.start import COMMANDS, page_of
from engine.config import models_in
from engine.data.sources import AnyData

MODULES = list(COMMANDS.values())
SOURCES = {name for source in models_in(AnyData) for name in get_args(source.model_fields["name"].annotation)}
HEAVY = ("torch", "torchvision", "sklearn", "scipy", "optuna", "onnx", "onnxruntime", "numpy")


def everything_of(module: str) -> str:
    """The text of `--help-all`, on one line."""
    return " ".join(everything(command_of(module), module).split())


@pytest.mark.parametrize("module", MODULES)
def test_the_stored_page_is_the_one_that_the_command_describes(module: str) -> None:
    assert page_of(module).read_text(encoding="utf-8") == page(module), "run make help"


def test_every_stored_page_is_of_a_command() -> None:
    assert {path.stem for path in page_of("x").parent.glob("*.txt")} == set(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_a_page_is_one_screen_that_teaches(module: str) -> None:
    text = page(module)
    lines = text.splitlines()
    assert len(lines) <= 48
    assert max(map(len, lines)) <= 110
    assert lines[0].startswith(f"usage: python -m {module}")
    assert "examples:" in text
    assert 0 < len(re.findall(r"^  --", text, re.M)) <= 10


@pytest.mark.parametrize("module", MODULES)
def test_everything_names_every_flag_once_and_in_human_words(module: str) -> None:
    command = command_of(module)
    names = [flag.name for flag in flags_of(command)]
    assert len(names) == len(set(names))
    typed = {flag_name(name) for name in flag_names(command)}
    assert typed | {name.rsplit(".", 1)[0] for name in typed} >= set(names), "lists of sections have one flag"
    text = everything(command, module)
    for word in ("SUPPRESS", "ifdef", "undefined", "Optional", "PydanticUndefined", "NoneType"):
        assert word not in text
    assert max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize("module", MODULES)
def test_examples_are_commands_with_flags_that_exist(module: str) -> None:
    text = (command_of(module).__doc__ or "").partition("examples:\n")[2]
    examples = text.replace("\\\n", " ").splitlines()  # a command may go on in the next line
    assert sum(1 for line in examples if line.strip()) > 0
    for line in filter(str.strip, examples):
        started = re.match(r"\s*(?:torchrun [^-]*(?:--\S+ \S+ )*-m(?: --)?|python -m) (\S+)(.*)", line)
        assert started, f"'{line}' starts no command"
        assert started[1] in MODULES
        known = {flag_name(name) for name in flag_names(command_of(started[1]))}
        known |= {name.rsplit(".name", 1)[0] for name in known} | {"--no-" + name[2:] for name in known}
        known |= {name.split(".")[0] for name in known}
        for word in shlex.split(re.split(r"   (?=[^ -])|#", started[2])[0]):
            assert not word.startswith("--") or word.split("=")[0] in known, f"'{line}' has no flag {word}"
        for name in re.findall(r"--data(?:\.name)? (\w+)", line):
            assert name in SOURCES, f"'{line}' has no data source {name}"


def test_data_sources_in_the_documents_exist() -> None:
    for path in sorted((Path(__file__).parents[3] / "docs").rglob("*.md")):
        for name in re.findall(r"--data(?:\.name)? (\w+)", path.read_text(encoding="utf-8")):
            assert name in SOURCES, f"{path.name} names the data source {name}"


def test_defaults_of_sections_that_are_chosen_by_name() -> None:
    said = everything_of("ofa.train")
    assert "--sandwich.sampling.name {attentive,macs_prior,uniform} default: uniform" in said
    assert "--sandwich.sampling.judge.name {batch_loss,predicted} default: batch_loss" in said
    assert "{alpha_divergence,soft_cross_entropy} default: soft_cross_entropy" in said
    assert "held out for validation; default: 0.2; 0.4 for digits" in said
    assert "--data.path PATH the .npz file; or folder that holds it" in said


@pytest.mark.parametrize("word", ["--help", "--help-all"])
def test_defaults_are_those_of_the_recipe(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: str) -> str:
        with pytest.raises(SystemExit):
            parse(command_of("ofa.train"), [*words, word])
        return " ".join(capsys.readouterr().out.split())

    recipe = said("--config", "ofa/cifar10")
    assert recipe == said("--config=ofa/cifar10")
    assert "phases have their own; default: 60 --" in recipe
    assert "npz} default: npz" in recipe and "default: data; data/cifar10.npz for npz" in recipe
    assert "default: ofa/cifar10 --" in recipe, "the recipe itself"
    # Without --config there is one, too.
    usual = said()
    assert "phases have their own; default: 40 --" in usual
    if word == "--help-all":
        assert "default: 60" not in usual
        assert "trains; default: 5e-05 --sgd" in recipe


def test_a_flag_says_to_which_kinds_it_belongs_and_what_each_defaults_to() -> None:
    said = everything_of("oneshot.search")
    assert " snas} default: darts" in said
    assert "npz,text} default: digits" in said
    assert "units of the controller's LSTM; default: 32 [enas]" in said
    assert "default: 1000 for random_ws" in said or "100 for enas" in said
    assert " softmax} default: softmax --" in said
    assert "; 200 for pr_darts; 250 for gdas; 310 for enas;" in said, "every method has epochs"


def test_a_switch_that_is_on_says_how_to_turn_it_off() -> None:
    assert "default: on; --no-sgd.nesterov turns it off" in everything_of("ofa.train")


@pytest.mark.parametrize("module", MODULES)
def test_help_imports_nothing_heavy(module: str) -> None:
    """As a process; the file of modules that were imported is what `-X importtime` prints."""
    words = [sys.executable, "-X", "importtime", "-m", module, "--epochs", "3", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == page_of(module).read_text(encoding="utf-8")
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "engine.command.start" in imported
    assert not imported & set(HEAVY)


@pytest.mark.parametrize("package", ["ofa", "oneshot", "predictors", "export"])
def test_importing_a_package_imports_nothing_heavy(package: str) -> None:
    code = f"import sys, {package}; print(sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


class Tiny(Command):
    """Say something.

    examples:
      python -m tiny --word hello
    """

    word: str = "x"


def test_help_of_a_command_without_a_stored_page(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse(Tiny, ["--word", "y", "--help"])
    assert stop.value.code == 0
    assert "--word TEXT" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        parse(Tiny, ["--help-all"])
    assert "--config TEXT" in capsys.readouterr().out


CLASHES = ("export.py", "engine/__init__.py", "configs/__init__.py", "ofa.py", "predictors.py", "oneshot.py")


@pytest.fixture
def clashing_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with files of the names of our packages that must not be imported."""
    for name in CLASHES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise SystemExit('the wrong file was imported')\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_ofa(*words: str) -> subprocess.CompletedProcess[str]:
    """The console command, from the scripts of this environment."""
    script = Path(sys.executable).with_name("ofa")
    return subprocess.run([str(script), *words], capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.usefixtures("clashing_folder")
def test_the_console_command_works_where_files_have_our_names() -> None:
    done = run_ofa("targets")
    assert (done.returncode, done.stderr) == (0, "")
    assert "nnapi" in done.stdout
    wrong = run_ofa("select", "--run", "nowhere", "--flops", "600M")
    assert wrong.returncode == 2
    assert wrong.stderr == (
        "error: 'nowhere' is not a run folder; train one with ofa train --out nowhere, or name another with "
        "--run.\n"
    )


def test_the_console_command_lists_and_explains_its_commands() -> None:
    done = run_ofa("--help")
    assert done.returncode == 0
    for name in COMMANDS:
        assert re.search(rf"^  {name} +[A-Z].*\.$", done.stdout, re.M), name
    page = run_ofa("select", "--flops", "600M", "--help").stdout
    assert page.startswith("usage: ofa select [flags]")
    assert "python -m" not in page
    wrong = run_ofa("selct", "--flops", "600M")
    assert (wrong.returncode, wrong.stderr) == (
        2,
        "error: 'ofa selct' is not a command; did you mean 'select'?\n",
    )


@pytest.mark.slow
@pytest.mark.usefixtures("clashing_folder")
def test_a_run_that_ofa_started_records_how() -> None:
    words = ["train", "--epochs", "1", "--threads", "1", "--evaluate-random", "0"]
    done = run_ofa(*words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("next: ofa collect\n")
    command = json.loads(Path("runs/supernet/env.json").read_text())["command"]
    assert command == f"ofa {' '.join(words)}"
