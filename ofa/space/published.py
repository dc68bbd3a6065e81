"""Architectures by name: the extremes, subnets that papers published, files and JSON."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from engine.config import Config, read_yaml, validate
from engine.errors import UserError, shortened
from engine.outside.documents import DocumentError, parse_json
from engine.outside.names import is_plain_name
from engine.run import read_json
from ofa.space.arch import Arch, largest, smallest
from ofa.space.codes import decode, encode
from ofa.space.space import Space


class Published(Config):
    """A subnet as its authors report it, for 1,000 classes; ImageNet top-1 is in percent."""

    arch: Arch
    macs: int
    params: int
    imagenet_top1: float


def published(space: Space) -> dict[str, Published]:
    """Published subnets of a packaged space by name; empty for other spaces."""
    # By the name of the space: a space of the user's own with that name must have these architectures, too.
    # The name may come from a file, so it must not lead to another folder.
    if not is_plain_name(space.name):
        return {}
    path = Path(str(files("ofa.space"))) / "archs" / f"{space.name}.yaml"
    if not path.is_file():
        return {}
    return {name: Published.model_validate(value) for name, value in read_yaml(path).items()}


def find_arch(space: Space, name: str, others: Sequence[str] = ()) -> Arch:
    """The architecture that `name` stands for.

    Args:
        space: which must have it.
        name: `smallest`, `largest`, a published name, a JSON file with an architecture (or with one under
            "arch"), or the JSON itself.
        others: names that the caller knows beside these, for the error.

    Raises:
        UserError: it is none of these, or not of this space.
    """
    if name == "smallest":
        return smallest(space)
    if name == "largest":
        return largest(space)
    # A published name counts before a file of that name in the current folder.
    named = published(space)
    arch = named[name].arch if name in named else _read_arch(space, name, [*named, *others])
    # Entries of inactive blocks become 0, so that equal architectures are equal objects.
    return decode(space, encode(space, arch))


def _read_arch(space: Space, name: str, named: list[str]) -> Arch:
    """The architecture in a JSON file, or in JSON; `named` are more names, for the error."""
    is_json = name.lstrip().startswith("{")
    if not is_json and not Path(name).is_file():
        known = ", ".join(["smallest", "largest", *named])
        # A name with this ending is meant as a file, though there is none: the remedy is another.
        if name.endswith(".json"):
            raise UserError(f"There is no file '{name}'; give a file of predictors.select, or {known}.")
        raise UserError(
            f"Space '{space.name}' has no architecture '{name}'; give {known}, a file of predictors.select, "
            "or JSON."
        )
    try:
        values: Any = parse_json(name) if is_json else read_json(Path(name))
    except DocumentError as error:
        raise UserError(f"Architecture '{shortened(name)}' is not valid JSON ({error}).") from None
    if not isinstance(values, dict):
        raise UserError(
            f"'{shortened(name)}' holds no single architecture, but a JSON {type(values).__name__}."
        )
    # Files of predictors.select and lines of pairs.jsonl hold the architecture among other things.
    return validate(Arch, values.get("arch", values), f"architecture '{shortened(name)}'")
