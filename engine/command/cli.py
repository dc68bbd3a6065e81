"""From a configuration class to a command: `main(Train)` is the whole of an entry module's last line."""

import json
import os
import re
import signal
import sys
from argparse import ArgumentParser
from inspect import cleandoc
from typing import Any, ClassVar, NoReturn, TypeVar, get_args

import torch
from pydantic import BaseModel, Field
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict, SettingsError

from engine.command.interrupt import interrupt_once
from engine.command.launch import complain, only_the_first_prints, started
from engine.config import Config, merge, models_in, over_defaults, read_recipe, validate
from engine.errors import UserError, nearest


class Command(Config):
    """A command: its fields are the flags, its docstring the help, `execute` the work and the exit status."""

    config: str | None = Field(
        None, description="recipe: a YAML file, or a packaged name such as ofa/cifar10"
    )
    many_processes: ClassVar[bool] = False  # whether torchrun may start more than one of it

    @classmethod
    def prepare(cls, values: dict[str, Any]) -> dict[str, Any]:
        """What recipe and flags say, with defaults under it that depend on what they say."""
        return values

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
    values = read_recipe(recipe) if recipe else {}
    values.pop("config", None)
    values = over_defaults(command, command.prepare(merge(values, given)))
    return validate(command, values | {"config": recipe}, recipe or "command line", given)


def _flags(command: type[Command], argv: list[str]) -> dict[str, Any]:
    argv = _named_sections(command, argv)
    package = command.__module__.split(".")[0]
    specs = [getattr(sys.modules[name], "__spec__", None) for name in ("__main__", command.__module__)]
    named = [
        spec.name.removesuffix(".__main__") for spec in specs if spec is not None
    ]  # first what was started
    module = next((name for name in named if package in ("__main__", name.split(".")[0])), command.__module__)
    settings = SettingsConfigDict(
        cli_prog_name=f"python -m {module}",
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
        source = CliSettingsSource[Any](parser_class, cli_parse_args=False)
        _explain_sections(command, source.root_parser)
        return dict(source(args=argv)())
    except SettingsError as error:
        raise UserError(_unknown_flag(command, str(error))) from None


def _explain_sections(command: type[Command], parser: ArgumentParser) -> None:
    """Say of a section's flag to which of the section's kinds it belongs, if not to all, and which kind is
    the default."""
    for action in parser._actions:
        *above, name = action.dest.split(".")
        kinds: list[type[BaseModel]] = [command]
        default: Any = None
        for depth, part in enumerate(above):
            default = command.model_fields[part].default if depth == 0 else getattr(default, part, None)
            kinds = [
                inner
                for kind in kinds
                if part in kind.model_fields
                for inner in models_in(kind.model_fields[part].annotation)
            ]
        if name == "name" and isinstance(default, BaseModel):
            action.help = f"(default: {default.name})"  # type: ignore[attr-defined]
        tags = {kind: tags_of(kind) for kind in kinds}
        owners = sorted({tag for kind in kinds if name in kind.model_fields for tag in tags[kind]})
        if (
            above
            and action.help
            and all(tags.values())
            and len(owners) < len({tag for found in tags.values() for tag in found})
        ):
            action.help += f" [{', '.join(owners)}]"


def tags_of(kind: type[BaseModel]) -> tuple[str, ...]:
    """The names by which a kind of section is chosen; none if it is the only kind."""
    return get_args(kind.model_fields["name"].annotation) if "name" in kind.model_fields else ()


def _named_sections(command: type[Command], argv: list[str]) -> list[str]:
    """`--data cifar10` as `--data.name cifar10`, and `--penalties beta_decay,cost` as a list of sections of
    those names."""
    tagged = _tagged(command)
    words = [
        part for word in argv for part in (word.split("=", 1) if word.split("=", 1)[0] in tagged else [word])
    ]
    for place in reversed(range(len(words))):
        word, value = words[place], (words[place + 1 : place + 2] or ["-"])[0]
        if word in tagged and value.startswith("-"):
            raise UserError(f"{word} needs a name after it; --help lists those that {word}.name may have.")
        if word in tagged and not value.startswith(("{", "[")):
            names = [{"name": name.strip()} for name in value.split(",") if name.strip()]
            words[place : place + 2] = [word, json.dumps(names)] if tagged[word] else [f"{word}.name", value]
    return words


def _tagged(model: type[BaseModel], prefix: str = "--") -> dict[str, bool]:
    """The flags of sections that are chosen by name, in `model` and its sections: whether each is a list of
    them."""
    found = {}
    for name, field in model.model_fields.items():
        flag, kinds = f"{prefix}{name.replace('_', '-')}", models_in(field.annotation)
        if kinds and all(map(tags_of, kinds)):
            found[flag] = str(field.annotation).startswith("tuple")
        for kind in kinds:
            found |= _tagged(kind, f"{flag}.")
    return found


def _unknown_flag(command: type[Command], message: str) -> str:
    unknown = re.search(r"unrecognized arguments: (.*)", message)
    if unknown is None:
        field = re.search(r'parsing value for field "(\w+)"', message)
        reason = f"--{field[1]} cannot be read" if field else message.removeprefix("error parsing CLI: ")
        return f"{reason}; --help explains every flag."
    flag = unknown[1].split()[0]
    known = [f"--{name.replace('_', '-')}" for name in flag_names(command)]
    return f"'{flag}' is not a flag of this command; {nearest(flag, known)} --help explains each."


def flag_names(model: type[BaseModel]) -> set[str]:
    """The fields of a model and, with dots, those of its sections."""
    names = set()
    for name, field in model.model_fields.items():
        sections = models_in(field.annotation)
        names |= {f"{name}.{inner}" for section in sections for inner in flag_names(section)} or {name}
    return names


def main(command: type[Command], argv: list[str] | None = None) -> NoReturn:
    """Parse, run and exit: 0 done, 1 the result failed its check, 2 the user can mend it, 130 interrupted."""
    before = signal.signal(signal.SIGINT, interrupt_once)
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
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except OSError as error:
        status = _complain(f"{error.filename or 'input/output'}: {error.strerror or error}.")
    except torch.OutOfMemoryError:
        status = _complain("The device ran out of memory; use a smaller --batch-size or a smaller space.")
    except KeyboardInterrupt:
        status = 130
        if started()[0] == 0:
            print("\ninterrupted", file=sys.stderr)
    # As a process, a late Ctrl-C must not turn a clean exit into a traceback; inside another program its
    # handler comes back.
    signal.signal(signal.SIGINT, signal.SIG_IGN if argv is None else before)
    sys.exit(status)


def _complain(sentence: str) -> int:
    complain(sentence)
    return 2
