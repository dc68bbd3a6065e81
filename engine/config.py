"""Configuration: closed, frozen models; YAML recipes; counts written as 600M; errors as one sentence."""

import math
import re
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from annotated_types import Gt
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError

from engine.errors import MOST_OF_A_VALUE, UserError, nearest, shortened
from engine.outside.documents import MOST_YAML_BYTES, DocumentError, parse_yaml, read_text
from engine.outside.names import expanded

MOST_SHOWN = 1000  # entries of a list or mapping that a message writes out, before it shortens them
MOST_COUNT = 1e18  # the arrays that counts are compared with hold 64-bit numbers
SUFFIX = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


class Config(BaseModel):
    """Base of everything that crosses a stage: unknown keys are refused and values never change.

    No number is nan or infinite: every comparison with nan is false, so that no limit would hold.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _located(path: Path) -> Path:
    return expanded(path).absolute()


# A path that is stored absolute: a run's config.yaml is read by commands that start in other folders.
Located = Annotated[Path, AfterValidator(_located)]

C = TypeVar("C", bound=BaseModel)


def parse_count(value: object) -> int:
    """The integer that a count means: `600M`, `0.6G`, `600e6` and `600000000` are the same number.

    Raises:
        ValueError: it is not a count. pydantic makes a validation error of it.
    """
    text = _as_text(value)
    match = re.fullmatch(r"\s*(\d+\.?\d*(?:e\+?\d+)?|\.\d+)\s*([kmgt]?)\s*", text.lower(), re.ASCII)
    if match is None:
        raise ValueError(
            f"{shortened(repr(text))} is not a count; write it as 600M, 0.6G, 600e6 or 600000000"
        )
    count = float(match[1]) * SUFFIX[match[2]]
    if not count < MOST_COUNT:
        raise ValueError(f"{shortened(repr(text))} is too large for a count, which ends at {MOST_COUNT:.0e}")
    # Rounded, not cut: the product may fall short of a whole number, as 0.57 * 100 does (56.99999999999999).
    return round(count)


def _as_text(value: object) -> str:
    try:
        return str(value)
    except ValueError:  # Python writes out no whole number of more than 4,300 digits
        raise ValueError("the number has thousands of digits") from None


Count = Annotated[int, BeforeValidator(parse_count)]


def format_count(value: float, digits: int = 3) -> str:
    """1234567 -> `1.23M`; with 15 digits `1.234567M`, which `parse_count` reads back exactly.

    Args:
        value: the count, not negative.
        digits: significant digits that are kept.
    """
    # Rounded before the unit is chosen, so that 999,999 becomes 1M and not 1000k.
    rounded = float(f"{value:.{digits}g}")
    for suffix, unit in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if rounded >= unit:
            return f"{rounded / unit:.15g}{suffix}"
    return f"{rounded:.15g}"


def are(count: int) -> str:
    """The verb after so many: `1 file is`, `2 files are`."""
    return "is" if count == 1 else "are"


def counted(count: int, noun: str) -> str:
    """`1 batch`, `2 batches`: a number with what it counts."""
    ending = "es" if noun.endswith(("tch", "ss")) else "s"
    return f"{count} {noun}{'' if count == 1 else ending}"


def budget_order(name: str) -> tuple[list[float], str]:
    """A key that sorts names of budgets by their limits: `2M`, `12M`, `12M-5ms`; without a number last."""
    limits = []
    for number, unit in re.findall(r"(\d+(?:\.\d+)?)([kMG]?)", name):
        limits.append(float(number) * SUFFIX[unit.lower()])
    return limits or [math.inf], name


def parse_duration(value: object) -> float:
    """The seconds that a duration means: `3h50m`, `90m`, `45s`; a bare number is seconds.

    Raises:
        ValueError: it is not a duration. pydantic makes a validation error of it.
    """
    number = r"(\d+\.?\d*|\.\d+)"
    text = _as_text(value).lower().replace(" ", "")
    if re.fullmatch(number, text, re.ASCII):
        return float(text)
    match = re.fullmatch(rf"(?:{number}h)?(?:{number}m)?(?:{number}s)?", text, re.ASCII)
    if match is None or not text:
        raise ValueError(f"{shortened(repr(text))} is not a duration; write it as 3h50m, 90m or 45s")
    hours, minutes, seconds = match.groups("0")
    return 3600 * float(hours) + 60 * float(minutes) + float(seconds)


Duration = Annotated[float, BeforeValidator(parse_duration), Gt(0)]


def format_duration(seconds: float) -> str:
    """Seconds as `3h50m`, `12m` or `45s`: hours and minutes from an hour on, minutes from two minutes on."""
    if seconds < 120:
        return f"{seconds:.0f}s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes}m"
    return f"{minutes // 60}h{minutes % 60:02}m"


def find_recipe(name: str) -> Path:
    """The recipe at path `name`, or the packaged one of that name, such as `ofa/cifar10`.

    Raises:
        UserError: there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    # A link to configs/ in a clone, a folder of the package where it is installed.
    root = Path(str(files("engine"))) / "configs"
    # The path that a reader of a clone would type, configs/ofa/cifar10.yaml, means the packaged recipe too.
    packaged = root / name.removeprefix("configs/").removesuffix(".yaml")
    if packaged.with_suffix(".yaml").is_file():
        return packaged.with_suffix(".yaml")
    names = [str(path.relative_to(root).with_suffix("")) for path in root.rglob("*.yaml")]
    raise UserError(
        f"There is no recipe '{name}', neither as a file nor as a packaged one; {nearest(name, names)}"
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: the file cannot be read, is not YAML, is beyond a limit, or is not a mapping.
    """
    text = read_text(path, MOST_YAML_BYTES)
    try:
        values = parse_yaml(text)
    except DocumentError as error:
        raise UserError(f"{path} is not valid YAML: {error}.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold 'name: value' lines, but holds {type(values).__name__}.")
    return values


def read_recipe(name: str, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a recipe, laid over those of the recipe that it names as its `base`, if it names one.

    Args:
        name: as `find_recipe` takes it.
        above: the recipes that led here by their `base` lines.

    Raises:
        UserError: one of them cannot be found or read, or they are each other's base.
    """
    path = find_recipe(name)
    if path in above:
        loop = ", ".join(map(str, above))
        raise UserError(f"Recipe '{path}' is its own base; remove the 'base' line of one of {loop}.")
    values = read_yaml(path)
    base = values.pop("base", None)
    if base is None:
        return values
    return merge(read_recipe(str(base), (*above, path)), values)


def section(values: dict[str, Any], name: str) -> Any:
    """A section of a configuration, where a name alone is short for the section with that name."""
    found = values.get(name, {})
    return {"name": found} if isinstance(found, str) else found


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, section by section.

    A section whose `name` changes starts empty, since another kind of section has other fields.
    """
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            same_kind = value.get("name", old.get("name")) == old.get("name")
            merged[key] = merge(old, value) if same_kind else value
        else:
            merged[key] = value
    return merged


def over_defaults(model: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """`values`, with each section laid over the default of that section.

    So a section may omit its `name`, and what it omits is what the command has by default.
    """
    # pydantic alone would take what a section omits from the section's class, whose defaults may differ from
    # those of the field that holds it.
    sections = {}
    for name, field in model.model_fields.items():
        default = field.get_default()
        if name in values and isinstance(default, BaseModel):
            sections[name] = default.model_dump()
    laid = merge(sections, values)
    for name, value in laid.items():
        if name in model.model_fields and isinstance(value, dict):
            kinds = _kinds_named(models_in(model.model_fields[name].annotation), value.get("name"))
            # Of an unknown kind no defaults are known; `validate` complains about its name later.
            if len(kinds) == 1:
                laid[name] = over_defaults(kinds[0], value)
    return laid


def unchecked(model: type[C], values: dict[str, Any]) -> C:
    """An instance of `model` with these values, of which help shows what is there; they may be wrong."""
    sections = {}
    for name, value in values.items():
        field = model.model_fields.get(name)
        sections[name] = _unchecked_section(models_in(field.annotation) if field else [], value)
    return model.model_construct(**sections)


def _unchecked_section(kinds: list[type[BaseModel]], value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_unchecked_section(kinds, one) for one in value)
    if not kinds or not isinstance(value, dict):
        return value
    return unchecked(_kinds_named(kinds, value.get("name"))[0], value)


def _kinds_named(kinds: list[type[BaseModel]], name: Any) -> list[type[BaseModel]]:
    """Those of `kinds` that go by `name`; all of them if none does."""
    named = [kind for kind in kinds if name in tags_of(kind)]
    return named or kinds


def tags_of(kind: type[BaseModel]) -> tuple[str, ...]:
    """The names by which a kind of section is chosen; none if it is the only kind of its section."""
    if "name" not in kind.model_fields:
        return ()
    return get_args(kind.model_fields["name"].annotation)


def validate(model: type[C], values: Any, source: str, flags: dict[str, Any] | None = None) -> C:
    """An instance of `model` with these values.

    Args:
        model: the class.
        values: what was read.
        source: where the values were read, for the error sentence: the name of a file.
        flags: those of the values that came from the command line; None if there is no command line.

    Raises:
        UserError: one sentence about what is wrong and where it came from.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        path, sentence = _explain(error, model, flags)
        raise UserError(f"{'command line' if _by_flag(flags, path) else source}: {sentence}") from None


def _by_flag(flags: dict[str, Any] | None, path: list[str]) -> bool:
    """Whether the command line gave the value at a path."""
    found: Any = flags
    for part in path:
        found = found.get(part) if isinstance(found, dict) else found
    return found is not None


def _explain(
    error: ValidationError, model: type[BaseModel], flags: dict[str, Any] | None
) -> tuple[list[str], str]:
    """Where a validation error is, and one sentence about it.

    An unknown field is explained first if there is one: a misspelt field is also why another one is missing.
    """
    complaints = error.errors()
    unknown = [complaint for complaint in complaints if complaint["type"] == "extra_forbidden"]
    first = (unknown or complaints)[0]
    path, siblings = _locate(model, first["loc"])
    where = shortened(".".join(path))
    # pydantic puts these words before the text of a ValueError that a validator of ours raised.
    message = first["msg"].removeprefix("Value error, ")
    # "did you mean 'macs'?" is the end of a sentence already.
    message = message if message.endswith("?") else message.rstrip(".") + "."
    match first["type"]:
        case "extra_forbidden":
            return path, f"there is no field '{where}'; {nearest(path[-1], siblings)}"
        case "missing":
            remedy = f"; give it in the recipe or as --{where.replace('_', '-')}" if flags is not None else ""
            return path, f"'{where}' is missing{remedy}."
        case "union_tag_invalid":
            tag = str(first["ctx"]["tag"])
            # pydantic lists the tags as one string: 'cosine', 'exponential'.
            known = re.findall("'([^']+)'", str(first["ctx"]["expected_tags"]))
            return path, f"there is no {where} '{tag}'; {nearest(tag, known)}"
        case "value_error":
            if where and _by_flag(flags, path):
                # One flag holds the whole list of which a value is wrong.
                where = "--" + ".".join(part for part in path if not part.isdigit()).replace("_", "-")
            return path, f"{where}: {message}" if where else message
    return path, f"'{where}' = {_shown(first['input'])} is not valid: {message[0].lower()}{message[1:]}"


def _shown(value: Any) -> str:
    """A value in a message. It may be a large part of a file, so it is not written out before it is cut."""
    if isinstance(value, dict | list | tuple) and len(value) > MOST_SHOWN:
        return f"a {type(value).__name__} of {len(value):,}"
    if isinstance(value, str):
        value = value[: 2 * MOST_OF_A_VALUE]
    try:
        return shortened(repr(value))
    except ValueError:  # a number of more digits than Python writes out
        return "a number of thousands of digits"


def _locate(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[list[str], list[str]]:
    """Where a pydantic error is, in the user's words.

    Args:
        model: the class that was validated.
        location: pydantic's path, in which the names of kinds stand between those of fields.

    Returns:
        The path without the names of kinds, and the fields among which its last part was looked for.
    """
    models: list[type[BaseModel]] = [model]
    path: list[str] = []
    for depth, part in enumerate(location):
        last = depth + 1 == len(location)
        # A tag in the middle of the path says which kind was validated. The user never wrote it there.
        of_that_name = [kind for kind in models if part in tags_of(kind)]
        if of_that_name and not last:
            models = of_that_name
            continue
        path.append(str(part))
        if not last:
            inner: list[type[BaseModel]] = []
            for kind in models:
                if part in kind.model_fields:
                    inner += models_in(kind.model_fields[str(part)].annotation)
            models = inner or models
    fields: set[str] = set()
    for kind in models:
        fields |= kind.model_fields.keys()
    return path, sorted(fields)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a field of this type may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found: list[type[BaseModel]] = []
    for inner in get_args(annotation):
        found += models_in(inner)
    return found
