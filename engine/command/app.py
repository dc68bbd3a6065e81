"""The console command `ofa`: `ofa train` runs what `python -m ofa.train` runs.

It works from every folder: unlike `python -m`, a console command does not look for modules in the current
folder, where the user may have an `export.py`, an `engine/` or a `configs/` of their own.
"""

import os
import runpy
import sys

from engine.command.start import COMMANDS, HELP, page_of, prepare
from engine.errors import nearest

WHAT = """\
usage: ofa COMMAND [flags]

Train one weight-sharing network on your images; then, for every device budget, take the best subnet out of it
in seconds, as an ONNX file that is proved equal to the torch model.

examples:
  ofa train                       a supernet of the embedded digits
  ofa collect                     measure a few hundred of its subnets
  ofa select --flops 300k         the best one under a budget
  ofa export                      a verified ONNX file of it

commands:
"""


def main() -> None:
    """Run the command that the first word names; without a word, list all commands."""
    words = sys.argv[1:]
    if not words or words[0] in HELP:
        print(WHAT + _list(), end="")
        sys.exit(0)
    name, *flags = words
    if name not in COMMANDS:
        print(f"error: 'ofa {name}' is not a command; {nearest(name, COMMANDS)}", file=sys.stderr)
        sys.exit(2)
    # The mark is this process's own: processes that it starts inherit the variable but have other numbers.
    os.environ["OFA_COMMAND"] = str(os.getpid())
    module = COMMANDS[name]
    prepare(module, flags)
    sys.argv = [f"ofa {name}", *flags]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _list() -> str:
    lines = []
    for name, module in COMMANDS.items():
        page = page_of(module).read_text(encoding="utf-8")
        # A page begins with its usage; its second paragraph begins with the summary of the command.
        summary = page.split("\n\n")[1].split("\n")[0]
        lines.append(f"  {name:12} {summary}\n")
    return "".join(lines) + "\nofa COMMAND --help explains each; python -m MODULE does the same.\n"
