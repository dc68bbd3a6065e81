"""From a configuration class to a command: `main(Train)` is the whole of an entry module's last line."""

import os
import re
import signal
import sys
from inspect import cleandoc
from typing import Any, NoReturn, TypeVar

import torch
from pydantic import Field
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict, SettingsError

from engine.config import Config, find_recipe, merge, read_yaml, validate
from engine.errors import UserError, nearest


class Command(Config):
    """A command: its fields are the flags, its docstring the help, `execute` the work and the exit status."""

    config: str | None = Field(None, description="recipe: a YAML file, or a packaged name such as ofa/cifar10")

    def execute(self) -> int:
        """Do the work; return 0, or 1 if the result failed its check."""
        raise NotImplementedError


T = TypeVar("T", bound=Command)


def parse(command: type[T], argv: list[str]) -> T:
    """Flags laid over the recipe that `--config` names, laid over the defaults.

    Raises:
        UserError: an unknown flag or field, or a value that does not fit.
        SystemExit: after `--help`.
    """
    given = _flags(command, argv)
    recipe = given.pop("config", command.model_fields["config"].default)
    values = read_yaml(find_recipe(recipe)) if recipe else {}
    values.pop("config", None)
    return validate(command, merge(values, given) | {"config": recipe}, recipe or "command line", given)


def _flags(command: type[Command], argv: list[str]) -> dict[str, Any]:
    module = sys.modules[command.__module__]
    spec = getattr(module, "__spec__", None)
    settings = SettingsConfigDict(
        cli_prog_name=f"python -m {spec.name if spec else command.__module__}",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_exit_on_error=False,
        extra="ignore",
    )
    body = {"__doc__": cleandoc(command.__doc__ or ""), "model_config": settings}
    parser_class = type(command.__name__, (BaseSettings, command), body)
    try:
        return dict(CliSettingsSource[Any](parser_class, cli_parse_args=argv)())
    except SettingsError as error:
        raise UserError(_unknown_flag(command, str(error))) from None


def _unknown_flag(command: type[Command], message: str) -> str:
    unknown = re.search(r"unrecognized arguments: (.*)", message)
    if unknown is None:
        return f"{message.removeprefix('error parsing CLI: ')}; --help lists every flag."
    flag = unknown[1].split()[0]
    known = [f"--{name.replace('_', '-')}" for name in command.model_fields]
    return f"'{flag}' is not a flag of this command; {nearest(flag, known)} --help explains each."


def main(command: type[Command], argv: list[str] | None = None) -> NoReturn:
    """Parse, run and exit: 0 done, 1 the result failed its check, 2 the user can mend it, 130 interrupted."""
    try:
        status = parse(command, sys.argv[1:] if argv is None else argv).execute()
        sys.stdout.flush()
    except UserError as error:
        status = _complain(str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except OSError as error:
        status = _complain(f"{error.filename or 'input/output'}: {error.strerror or error}.")
    except torch.OutOfMemoryError:
        status = _complain("The device ran out of memory; use a smaller --batch-size or a smaller space.")
    except KeyboardInterrupt:
        status = 130
        print("\ninterrupted", file=sys.stderr)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a late Ctrl-C must not turn a clean exit into a traceback
    sys.exit(status)


def _complain(sentence: str) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return 2
