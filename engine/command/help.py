"""Help in two lengths: one screen that teaches (`--help`), and every flag (`--help-all`)."""

import textwrap
from inspect import cleandoc

from pydantic import BaseModel

from engine.command.flags import Flag, flags_of
from engine.config import counted

WIDTH = 100  # letters in a line
COLUMN = 30  # where the descriptions of flags begin
MAIN_FLAGS = 10  # with the examples these fit on one screen


def screen(
    command: type[BaseModel], module: str, main_flags: tuple[str, ...], recipe: str | None = None
) -> str:
    """What `--help` prints: what the command is, three examples and the flags that matter.

    Args:
        command: the command.
        module: as in `python -m module`.
        main_flags: names of the flags to show; empty: the first ten.
        recipe: whose values are the defaults; None: those of the command.
    """
    about, examples = _about(command)
    every_flag = flags_of(command, recipe)
    flags = [flag for flag in every_flag if not flag.section]
    if main_flags:
        by_name = {flag.name: flag for flag in every_flag}
        flags = [by_name[name] for name in main_flags]
    parts = [_usage(every_flag, module), about]
    if examples:
        parts.append("\n".join(["examples:", *examples[:3]]))
    parts.append("\n".join(["flags:", *(_described(flag) for flag in flags[:MAIN_FLAGS])]))
    rest = len(every_flag) - min(len(flags), MAIN_FLAGS)
    if rest > 0 or len(examples) > 3:
        more = []
        if rest > 0:
            more.append(counted(rest, "more flag"))
        if len(examples) > 3:
            more.append("more examples")
        parts.append(f"--help-all shows {' and '.join(more)}.")
    return "\n\n".join(parts) + "\n"


def everything(command: type[BaseModel], module: str, recipe: str | None = None) -> str:
    """What `--help-all` prints: all examples, and all flags section by section; arguments as of `screen`."""
    about, examples = _about(command)
    every_flag = flags_of(command, recipe)
    parts = [_usage(every_flag, module), about]
    if examples:
        parts.append("\n".join(["examples:", *examples]))
    sections: dict[str, list[Flag]] = {}
    for flag in every_flag:
        sections.setdefault(flag.section, []).append(flag)
    for section, flags in sections.items():
        field = command.model_fields.get(section)
        what = f" {field.description}" if field is not None and field.description else ""
        title = f"{section or 'flags'}:{what}"
        parts.append("\n".join([title, *(_described(flag) for flag in flags)]))
    return "\n\n".join(parts) + "\n"


def _usage(flags: list[Flag], module: str) -> str:
    words = [flag.name.removeprefix("--").upper() for flag in flags if flag.positional]
    return " ".join([f"usage: python -m {module}", *words, "[flags]"])


def _about(command: type[BaseModel]) -> tuple[str, list[str]]:
    """The docstring without its examples, and the lines of the examples."""
    about, _, text = cleandoc(command.__doc__ or "").partition("examples:\n")
    examples: list[str] = []
    for line in text.rstrip().splitlines():
        if examples and examples[-1].endswith("\\"):
            examples[-1] += f"\n{line}"  # a command that goes on in the next line is one example
        else:
            examples.append(line)
    return about.strip(), examples


def _described(flag: Flag) -> str:
    """One flag: its name and value on the left, what it does on the right."""
    name = flag.name.removeprefix("--").upper() if flag.positional else f"{flag.name} {flag.value}".rstrip()
    text = "; ".join(filter(None, [flag.text, _defaults(flag)]))
    if not flag.all_kinds:
        text += f" [{', '.join(sorted(flag.kinds))}]"
    if len(name) > WIDTH:
        # A long list of choices goes on in the next line.
        name = "\n".join(textwrap.wrap(name.replace(",", ", "), WIDTH, subsequent_indent=" " * 6))
    start = f"  {name}".ljust(COLUMN)
    new_line = "\n" + " " * COLUMN
    # A name that leaves less than two spaces before the description has a line of its own.
    if len(f"  {name}") > COLUMN - 2:
        start = f"  {name}{new_line}"
    lines = textwrap.wrap(text, WIDTH - COLUMN)
    return (start + new_line.join(lines)).rstrip()


def _defaults(flag: Flag) -> str:
    """Which default the flag has; for a switch that is on, how it is turned off."""
    if not flag.defaults:
        return "required"
    # The default that most kinds share comes first and without their names.
    default, *others = sorted(flag.defaults, key=lambda value: -len(flag.defaults[value]))
    if others:
        said = [default]
        for value in others:
            said.append(f"{value} for {', '.join(sorted(flag.defaults[value]))}")
        return f"default: {'; '.join(said)}"
    if default == "on":
        return f"default: on; --no-{flag.name.removeprefix('--')} turns it off"
    # A switch that is off and a value that is not given need no words: everybody expects that.
    if default in ("off", "none"):
        return ""
    return f"default: {default}"
