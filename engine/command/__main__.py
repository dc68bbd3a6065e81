"""`python -m engine.command` writes the pages that `--help` prints; `make help` runs it."""

from importlib import import_module
from importlib.util import find_spec

from engine.command.cli import Command, module_of
from engine.command.help import screen
from engine.command.start import COMMANDS, page_of


def command_of(module: str) -> type[Command]:
    """The command that `python -m module` runs.

    Args:
        module: such as `ofa.train`, or a package with a `__main__.py` such as `ofa.space`.
    """
    spec = find_spec(module)
    assert spec is not None
    is_package = spec.submodule_search_locations is not None
    content = vars(import_module(f"{module}.__main__" if is_package else module))
    commands = [c for c in content.values() if isinstance(c, type) and issubclass(c, Command)]
    # A module that only runs a command imports nothing else; others define theirs and import its parents.
    own = [c for c in commands if module_of(c) == module] or [c for c in commands if c is not Command]
    assert len(own) == 1, f"{module} must define one command, or import one to run it, not {own}"
    return own[0]


def page(module: str) -> str:
    """The page of `python -m module`, as `--help` prints it."""
    command = command_of(module)
    return screen(command, module, command.main_flags, command.usual_recipe({}))


def write_pages() -> None:
    """Write the help page of every command, where `engine.command.start` finds it."""
    for module in COMMANDS.values():
        page_of(module).write_text(page(module), encoding="utf-8")


if __name__ == "__main__":
    write_pages()
