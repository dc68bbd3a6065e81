"""A configuration class becomes a command: an entry module ends with one line, such as `main(Train)`."""

import json
import re
import signal
import sys
from inspect import cleandoc
from itertools import pairwise
from typing import Any, ClassVar, NoReturn, TypeVar

from pydantic import Field
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict, SettingsError

from engine.command import help as pages
from engine.command.flags import flag_name, flag_names, named_sections
from engine.command.interrupt import interrupt_once
from engine.command.launch import complain, only_the_first_prints, started
from engine.command.outputs import outlive_readers
from engine.command.start import HELP, as_typed, module_started, recipe_named
from engine.compute.memory import keep_freed_memory
from engine.config import Config, merge, over_defaults, read_recipe, validate
from engine.errors import UserError, nearest, shortened


class Command(Config):
    """A command: its fields are the flags, its docstring is the help, and `execute` does the work.

    A child may set `many_processes`, if torchrun may start several processes of it, and `main_flags`, the
    flags that `--help` shows, at most ten; without `main_flags` the help shows the first ten.
    """

    many_processes: ClassVar[bool] = False
    main_flags: ClassVar[tuple[str, ...]] = ()

    config: str | None = Field(
        None, description="recipe: a YAML file, or a packaged name such as ofa/cifar10"
    )

    @classmethod
    def usual_recipe(cls, given: dict[str, Any]) -> str | None:
        """The recipe where no --config names one; a child may choose by what the flags give."""
        recipe: str | None = cls.model_fields["config"].default
        return recipe

    @classmethod
    def prepare(cls, values: dict[str, Any]) -> dict[str, Any]:
        """A child may add defaults here that depend on the values given.

        Args:
            values: those of recipe and flags, section by section.

        Returns:
            The values to validate.
        """
        return values

    def execute(self) -> int:
        """Do the work and return the exit status: 0, or 1 if the result failed its check."""
        raise NotImplementedError


T = TypeVar("T", bound=Command)


def parse(command: type[T], argv: list[str]) -> T:
    """The command with its settings: flags are laid over the recipe of `--config`, and that over defaults.

    Args:
        command: the class.
        argv: the words after the name of the program.

    Raises:
        UserError: an unknown flag or field, or a value that does not fit.
        SystemExit: after `--help` or `--help-all`.
    """
    # Our own pages instead of argparse's: they show defaults, and first the flags that matter.
    wants_screen = any(word in HELP for word in argv)
    if wants_screen or "--help-all" in argv:
        module, recipe = module_of(command), recipe_named(argv) or command.usual_recipe({})
        if wants_screen:
            page = pages.screen(command, module, command.main_flags, recipe)
        else:
            page = pages.everything(command, module, recipe)
        print(as_typed(page), end="")
        sys.exit(0)
    given = _given(command, argv)
    recipe = given.pop("config") if "config" in given else command.usual_recipe(given)
    values = read_recipe(recipe) if recipe else {}
    values.pop("config", None)  # the recipe that was named counts
    values = over_defaults(command, command.prepare(merge(values, given)))
    return validate(command, values | {"config": recipe}, recipe or "command line", given)


def module_of(command: type[Command]) -> str:
    """The module that `python -m` runs for a command: `ofa.space` for a class in `ofa/space/__main__.py`."""
    # A module that runs as a program is called __main__.
    name = module_started() if command.__module__ == "__main__" else command.__module__
    return name.removesuffix(".__main__")


def _given(command: type[Command], argv: list[str]) -> dict[str, Any]:
    """The values that the flags give, section by section."""
    for word in argv:
        # The bytes of a word that is no UTF-8 come as halves of characters, which no later step can take.
        if not word.isascii() and any("\ud800" <= letter <= "\udfff" for letter in word):
            raise UserError(f"{word!a} on the command line is not text in UTF-8; type or rename it.")
    settings = SettingsConfigDict(
        cli_prog_name=f"python -m {module_of(command)}",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_exit_on_error=False,  # argparse would print its usage; here every mistake is one sentence
        extra="ignore",
    )
    # pydantic-settings fills only classes of its own. This one is made for the parse, so that a command
    # itself stays plain data that reads neither flags nor environment variables.
    body = {"__doc__": cleandoc(command.__doc__ or ""), "model_config": settings}
    parser_class = type(command.__name__, (BaseSettings, command), body)
    try:
        source = CliSettingsSource[Any](parser_class, cli_parse_args=False)
        return dict(source(args=_negative_values(_by_names(command, argv)))())
    except SettingsError as error:
        raise UserError(_unknown_flag(command, argv, str(error))) from None


def _by_names(command: type[Command], argv: list[str]) -> list[str]:
    """The words of a command line with short forms of sections written in full.

    `--data cifar10` becomes `--data.name cifar10`, and `--penalties beta_decay,cost` becomes a list of
    sections of those names.
    """
    sections = named_sections(command)
    # First `--data=cifar10` becomes two words, so that the loop below meets one form only.
    words: list[str] = []
    for word in argv:
        flag, equals, value = word.partition("=")
        words += [flag, value] if flag in sections and equals else [word]
    spelled: list[str] = []
    while words:
        flag = words.pop(0)
        if flag not in sections:
            spelled.append(flag)
            continue
        if not words or words[0].startswith("-"):
            raise UserError(
                f"{flag} needs a name after it; --help-all lists those that {flag}.name may have."
            )
        value = words.pop(0)
        # JSON holds a section, or a list of sections, as a whole.
        if value.startswith(("{", "[")):
            spelled += [flag, value]
        elif sections[flag]:
            names = [{"name": name.strip()} for name in value.split(",") if name.strip()]
            spelled += [flag, json.dumps(names)]
        else:
            spelled += [f"{flag}.name", value]
    return spelled


def _negative_values(words: list[str]) -> list[str]:
    """The words with `--flops -5M` as `--flops=-5M`: argparse takes -5M for a flag, and does not say why."""
    joined: list[str] = []
    for word in words:
        if re.match(r"-[\d.]|-inf|-nan", word) and joined and re.fullmatch(r"--[^=]+", joined[-1]):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _unknown_flag(command: type[Command], argv: list[str], message: str) -> str:
    """A sentence for the user from `message`, in which argparse complains about the command line."""
    unknown = re.search(r"unrecognized arguments: (.*)", message)
    if unknown is None:
        field = re.search(r'parsing value for field "(\w+)"', message)
        if field is None:
            reason = message.removeprefix("error parsing CLI: ")
            return f"{reason}; --help-all explains every flag."
        flag = flag_name(field[1])
        values = [value for name, value in pairwise(argv) if name == flag]
        complaint = _complaint(command, field[1], values[0]) if values else ""
        if complaint:
            return complaint
        given = f"{flag} {shortened(repr(values[0]))}" if values else flag
        meant = command.model_fields[field[1]].description
        return f"{given} cannot be read; it is meant to be: {meant}; --help-all explains every flag."
    flag = unknown[1].split()[0]
    known = [flag_name(name) for name in flag_names(command)]
    return f"'{flag}' is not a flag of this command; {nearest(flag, known)} --help-all explains each."


def _complaint(command: type[Command], field: str, value: str) -> str:
    """What the command itself says of a value that was no list for the parser, such as inf or nan."""
    given = {field: value}
    try:
        validate(command, given, "command line", given)
    except UserError as error:
        # It may be about another field instead, which is missing in `given`.
        if f"{flag_name(field)}:" in str(error):
            return str(error)
    return ""


def main(command: type[Command], argv: list[str] | None = None) -> NoReturn:
    """Parse, run and exit: 0 done, 1 the result failed its check, 2 the user can mend it, 130 interrupted.

    Signals, and how much freed memory the process keeps, are set here and nowhere else. So the functions of a
    command change nothing for a program of the user's that calls them.

    Args:
        command: the class.
        argv: the words of the command line; None: those of this process.
    """
    before = signal.signal(signal.SIGINT, interrupt_once)
    keep_freed_memory()
    if argv is None:
        outlive_readers()
    settings: Command | None = None
    try:
        with only_the_first_prints():
            settings = parse(command, sys.argv[1:] if argv is None else argv)
            if started()[1] > 1 and not command.many_processes:
                raise UserError(
                    "This command is one process; start it with python -m instead of torchrun, or with "
                    "--nproc-per-node 1."
                )
            status = settings.execute()
        sys.stdout.flush()
    except UserError as error:
        status = _complain(str(error))
    except OSError as error:
        status = _complain(f"{error.filename or 'input/output'}: {error.strerror or error}.")
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        status = _complain(_about_memory(settings))
    except KeyboardInterrupt:
        status = 130  # what a shell reports for SIGINT
        if started()[0] == 0:
            print("\ninterrupted", file=sys.stderr)
    # As a process, a late Ctrl-C must not turn a clean exit into a traceback; inside another program its
    # handler comes back.
    signal.signal(signal.SIGINT, signal.SIG_IGN if argv is None else before)
    sys.exit(status)


def _out_of_memory(error: Exception) -> bool:
    """Whether memory of a device or of the host ran out."""
    # By names and texts, since this module must not import torch: most commands start in an instant without.
    # For the host's memory torch has no class, only the text of its allocator.
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "DefaultCPUAllocator" in str(error)


def _about_memory(settings: Command | None) -> str:
    batch = getattr(settings, "batch_size", None)
    if batch is None:
        return "Memory ran out; end other programs, or use fewer or smaller images."
    half = max(2, batch // 2)
    return (
        f"Memory ran out with batches of {batch} images; lower --batch-size, such as to {half}, choose a "
        "smaller space, or give the process more memory. What was saved stays."
    )


def _complain(sentence: str) -> int:
    complain(as_typed(sentence))
    return 2
