"""The preparation of images in Kotlin and Swift, filled in for one bundle.

They are the four steps of classify.py, from the same description in the manifest, with nothing but the
standard library of each language.
"""

from pathlib import Path

from export.bundle.contents import Preparation
from export.manifest import Manifest

TEMPLATES = Path(__file__).parent / "snippets"


def write_snippets(folder: Path, files: list[Manifest]) -> None:
    """Write Prepare.kt and Prepare.swift for the first file that does not prepare images itself, if any."""
    for file in files:
        how = file.preprocessing or {}
        if how.get("baked") != "preprocessing":
            values = _values(file, Preparation.model_validate(how))
            for template in sorted(TEMPLATES.iterdir()):
                (folder / template.name).write_text(fill(template, values), encoding="utf-8")
            return


def fill(template: Path, values: dict[str, str]) -> str:
    """A template's text with a value for each name between two @."""
    text = template.read_text(encoding="utf-8")
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


def _values(file: Manifest, how: Preparation) -> dict[str, str]:
    """What stands for each name in a template; literals that Kotlin and Swift both read."""
    side = how.center_crop or how.image_size
    shape = [1 if isinstance(length, str) else length for length in file.input.shape]
    return {
        # A comment ends with its line, so nothing of a name can become code.
        "FILE": file.file,
        "SHORTER": str(how.resize_shorter_side or 0),
        "SIDE": str(side),
        "SIZE": str(how.resize[0]),
        "BILINEAR": _boolean(how.resize_interpolation.startswith("bilinear")),
        "CHANNELS": str(len(how.mean)),
        "CHANNELS_LAST": _boolean(file.input.layout == "NHWC"),
        "PIXELS": _boolean(file.input.dtype == "uint8"),
        "MEAN": ", ".join(repr(float(value)) for value in how.mean),
        "STD": ", ".join(repr(float(value)) for value in how.std),
        "SHAPE": ", ".join(str(length) for length in shape),
    }


def _boolean(value: bool) -> str:
    return "true" if value else "false"
