"""What a command does before it imports its own modules, which takes seconds.

The `__init__` of each package calls `start`. It gives Ctrl-C a quiet end and answers `--help` from a page
that is stored beside this file, so that help does not wait for torch.
"""

import os
import re
import shlex
import signal
import sys
from itertools import pairwise
from pathlib import Path

PAGES = Path(__file__).parent / "pages"
# The names that `ofa NAME` knows, and the module that each one runs.
COMMANDS = {
    "train": "ofa.train",
    "collect": "predictors.collect",
    "select": "predictors.select",
    "tune": "ofa.tune",
    "export": "export.onnx",
    "report": "predictors.report",
    "evaluate": "ofa.evaluate",
    "runs": "engine.runs",
    "replay": "engine.replay",
    "space": "ofa.space",
    "convert": "ofa.convert",
    "measure": "predictors.measure",
    "targets": "export.targets",
    "benchmark": "export.benchmark",
    "bundle": "export.bundle",
    "demo": "export.demo",
    "openvino": "export.openvino",
    "search": "oneshot.search",
    "retrain": "oneshot.retrain",
    "nasbench201": "oneshot.benchmark",
}
HELP = ("-h", "--help")
# Commands whose networks have other shapes in each step, or one after the other.
CHANGING_SHAPES = {"ofa.train", "ofa.tune", "ofa.evaluate"}
CHANGING_SHAPES |= {"predictors.collect", "predictors.select", "predictors.report"}


def start() -> None:
    """Prepare the process if `python -m` is about to run a command; do nothing for everybody else."""
    if sys.argv[:1] != ["-m"]:  # what Python puts there while it imports the packages of `-m module`
        return
    words = sys.orig_argv  # sys.argv has no module yet
    prepare(words[words.index("-m") + 1], sys.argv[1:])


def prepare(module: str, flags: list[str]) -> None:
    """Give Ctrl-C a quiet end; print the stored page and end the process if `flags` ask for help."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # nothing is open or half-written yet
    if module in CHANGING_SHAPES:
        let_segments_grow()
    page = page_of(module)
    # The defaults of a recipe that is named are on no stored page.
    if any(flag in HELP for flag in flags) and page.is_file() and not recipe_named(flags):
        print(as_typed(page.read_text(encoding="utf-8")), end="")
        sys.exit(0)


def recipe_named(words: list[str]) -> str | None:
    """What `--config` names among the words of a command line; None if nothing."""
    for word, following in pairwise([*words, ""]):
        flag, _, value = word.partition("=")
        name = value or following
        if flag == "--config" and name and not name.startswith("-"):
            return name
    return None


def let_segments_grow() -> None:
    """Let torch's memory on a GPU grow piece by piece, unless the user has set how it is managed.

    Else each size of a tensor that is new reserves a block of its own, and subnets of ever other sizes leave
    blocks that fit none. torch reads the variable when it starts CUDA, so it is set before torch is imported.
    """
    # CUDA has no such memory elsewhere, and torch would warn.
    given = {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"} & os.environ.keys()
    if sys.platform == "linux" and not given:
        os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def page_of(module: str) -> Path:
    """Where the help page of `python -m module` is stored."""
    return PAGES / f"{module}.txt"


def say(text: str) -> None:
    """Print a text that names commands, such as the next step, in the form that the user typed."""
    print(as_typed(text))


def module_started() -> str:
    """The module that `python -m` or `ofa` runs in this process, such as `ofa.train`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return "" if spec is None else str(spec.name).removesuffix(".__main__")


def started_by_ofa() -> bool:
    """Whether this process is the console command `ofa`."""
    # By its number: a process that this one starts inherits the variable, but is started in another way.
    return os.environ.get("OFA_COMMAND") == str(os.getpid())


def command_line() -> str:
    """The command line of this process, as it can be typed again; passwords in URLs are masked."""
    # It is written into files, which others may read.
    if started_by_ofa():
        # argv[0] is `ofa train` there (`engine.command.app`): two words that shlex.join would quote as one.
        words = shlex.join(map(without_password, sys.argv[1:]))
        return as_typed(f"python -m {module_started()} {words}".rstrip())
    return shlex.join(["python", *map(without_password, sys.orig_argv[1:])])


def without_password(address: str) -> str:
    """`postgresql://me:***@host/studies`: a URL as it may be printed."""
    address = re.sub(r"(://[^:/@]*):.*@", r"\1:***@", address)
    return re.sub(r"([?&]\w*pass\w*)=[^&]*", r"\1=***", address)


def as_typed(text: str) -> str:
    """`text` with commands as this process was started: `ofa train` where `ofa` was typed.

    `python -m ofa.train` looks for modules in the current folder first, where the user may have an
    `export.py`. Whoever typed `ofa` is told the form that works in such a folder, too.
    """
    if not started_by_ofa():
        return text
    names = {module: name for name, module in COMMANDS.items()}

    def typed(match: re.Match[str]) -> str:
        name = names.get(match[1])
        return match[0] if name is None else f"ofa {name}"

    return re.sub(r"python -m ((?:engine|ofa|predictors|export|oneshot)\.\w+)", typed, text)
