"""Names that stand in files: the one place where they are kept from leading out of a folder."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from engine.errors import UserError, is_control, shortened

MOST_LETTERS = 200  # of a file's name; file systems take 255 bytes, and temporary names are longer


def is_plain_name(name: str) -> bool:
    """Whether `name` names a file in a folder, whatever the system: no part of a path, nothing hidden."""
    if not 0 < len(name) <= MOST_LETTERS or name.startswith("."):
        return False
    # Backslashes and colons lead elsewhere on Windows, where a bundle may be unpacked.
    return not any(letter in "/\\:" or is_control(letter) for letter in name)


def check_plain_name(name: str) -> str:
    """`name` itself, if it is a plain name.

    Raises:
        ValueError: it is not. pydantic makes a validation error of it.
    """
    if not is_plain_name(name):
        raise ValueError(f"{shortened(ascii(name))} is not the plain name of a file in this folder")
    return name


PlainName = Annotated[str, AfterValidator(check_plain_name)]


def inside(folder: Path, name: str) -> Path:
    """The file `name` in `folder`.

    Raises:
        UserError: the name would lead out of the folder, or it is a link that does.
    """
    if not is_plain_name(name):
        raise UserError(f"{shortened(ascii(name))} is not the plain name of a file in '{folder}'.")
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"'{path}' is a link that leads out of its folder; copy the file itself.")
    return path


def expanded(path: Path) -> Path:
    """`path` with `~` and `~user` as their folders.

    Raises:
        ValueError: there is no such user. pydantic makes a validation error of it.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise UserError(f"'{path}' begins with the name of a user that this machine does not have.") from None


def check_class_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of classes, if each can be told from the others and stands on one line.

    labels.txt has a name a line, so one that ends a line would shift all classes after it.

    Raises:
        ValueError: one is empty, on several lines or there twice. pydantic makes a validation error of it.
    """
    seen = set[str]()
    for number, name in enumerate(names):
        if not name.strip():
            raise ValueError(f"class {number} has an empty name; give each class a name")
        if any(is_control(letter) for letter in name):
            raise ValueError(
                f"the class name {shortened(ascii(name))} has a line break or another control character; "
                "rename the class"
            )
        if name in seen:
            raise ValueError(f"two classes are called '{shortened(name)}'; rename one")
        seen.add(name)
    return names


ClassNames = Annotated[tuple[str, ...], AfterValidator(check_class_names)]
