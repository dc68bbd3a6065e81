"""Configuration: closed, frozen pydantic models; YAML recipes; counts written as 600M; errors as one
sentence."""

import re
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError

from engine.errors import UserError, nearest

SUFFIX = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


class Config(BaseModel):
    """Base of everything that crosses a stage: unknown keys are refused and values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _located(path: Path) -> Path:
    return path.expanduser().absolute()


# A path that is stored absolute: a run's config.yaml is read by commands that start in other folders.
Located = Annotated[Path, AfterValidator(_located)]

C = TypeVar("C", bound=BaseModel)


def parse_count(value: object) -> int:
    """`600M`, `0.6G`, `600e6` and `600000000` are the same number."""
    match = re.fullmatch(r"\s*(\d+\.?\d*(?:e\+?\d+)?|\.\d+)\s*([kmgt]?)\s*", str(value).lower())
    if isinstance(value, bool) or match is None:
        raise ValueError(f"{value!r} is not a count; write it as 600M, 0.6G, 600e6 or 600000000")
    return round(float(match[1]) * SUFFIX[match[2]])


Count = Annotated[int, BeforeValidator(parse_count)]


def format_count(value: float, digits: int = 3) -> str:
    """1234567 -> `1.23M`; with 15 digits `1.234567M`, which `parse_count` reads back exactly."""
    rounded = float(f"{value:.{digits}g}")
    for suffix, unit in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if rounded >= unit:
            return f"{rounded / unit:.15g}{suffix}"
    return f"{rounded:.15g}"


def find_recipe(name: str) -> Path:
    """The recipe at path `name`, or the packaged one of that name (`ofa/cifar10`, with or without
    `.yaml`)."""
    if Path(name).is_file():
        return Path(name)
    root = Path(str(files("engine"))) / "configs"
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
        UserError: the file cannot be read, is not YAML, or is not a mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold 'name: value' lines, but holds {type(values).__name__}.")
    return values


def read_recipe(name: str, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a recipe (`find_recipe`), laid over those of the recipe that it names as its `base`, if
    it does.

    Raises:
        UserError: one of them cannot be found or read, or they are each other's base.
    """
    path = find_recipe(name)
    if path in above:
        raise UserError(
            f"Recipe '{path}' is its own base; remove the 'base' line of one of {', '.join(map(str, above))}."
        )
    values = read_yaml(path)
    base = values.pop("base", None)
    return values if base is None else merge(read_recipe(str(base), (*above, path)), values)


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, section by section. A section whose `name` changes starts empty: its fields are
    others."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            renamed = "name" in value and value["name"] != old.get("name")
            merged[key] = value if renamed else merge(old, value)
        else:
            merged[key] = value
    return merged


def over_defaults(model: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """`values` whose sections are laid over the sections' defaults, so that a section may leave out its
    `name`."""
    defaults = {name: field.get_default() for name, field in model.model_fields.items()}
    sections = {
        name: default.model_dump()
        for name, default in defaults.items()
        if isinstance(default, BaseModel) and name in values
    }
    laid = merge(sections, values)
    for name, value in laid.items():
        kinds = (
            models_in(model.model_fields[name].annotation)
            if name in model.model_fields and isinstance(value, dict)
            else []
        )
        tagged = [kind for kind in kinds if "name" in kind.model_fields]
        kinds = [
            kind for kind in tagged if value.get("name") in get_args(kind.model_fields["name"].annotation)
        ] or kinds
        if len(kinds) == 1:
            laid[name] = over_defaults(kinds[0], value)
    return laid


def validate(model: type[C], values: Any, source: str, flags: dict[str, Any] | None = None) -> C:
    """`values` as a `model`.

    Raises:
        UserError: one sentence about what is wrong, naming `source`, or the command line for what came from
            `flags`.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        path, sentence = explain(error, model, flags is not None)
        found: Any = flags
        for part in path:
            found = found.get(part) if isinstance(found, dict) else found
        raise UserError(f"{source if found is None else 'command line'}: {sentence}") from None


def explain(error: ValidationError, model: type[BaseModel], has_flags: bool = False) -> tuple[list[str], str]:
    """Where a validation error is and one sentence: about an unknown field if there is one, since that is why
    another is missing."""
    complaints = error.errors()
    first = next((c for c in complaints if c["type"] == "extra_forbidden"), complaints[0])
    path, siblings = _locate(model, first["loc"])
    where = ".".join(path)
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    match first["type"]:
        case "extra_forbidden":
            return path, f"there is no field '{where}'; {nearest(path[-1], siblings)}"
        case "missing":
            remedy = f"; give it in the recipe or as --{where.replace('_', '-')}" if has_flags else ""
            return path, f"'{where}' is missing{remedy}."
        case "union_tag_invalid":
            known = re.findall("'([^']+)'", str(first["ctx"]["expected_tags"]))
            return (
                path,
                f"there is no {where} '{first['ctx']['tag']}'; {nearest(str(first['ctx']['tag']), known)}",
            )
        case "value_error":
            return path, f"{where}: {message}." if where else f"{message}."
    return path, f"'{where}' = {first['input']!r} is not valid: {message[0].lower()}{message[1:]}."


def _locate(model: type[BaseModel], location: tuple[int | str, ...]) -> tuple[list[str], list[str]]:
    """A pydantic location without the tags of unions, and the fields among which its last part was looked
    for."""
    models: list[type[BaseModel]] = [model]
    path: list[str] = []
    for depth, part in enumerate(location):
        tagged = [
            m
            for m in models
            if "name" in m.model_fields and part in get_args(m.model_fields["name"].annotation)
        ]
        if depth + 1 < len(location) and tagged:
            models = tagged
            continue
        path.append(str(part))
        if depth + 1 < len(location):
            models = [
                inner
                for m in models
                if part in m.model_fields
                for inner in models_in(m.model_fields[str(part)].annotation)
            ] or models
    return path, sorted({name for m in models for name in m.model_fields})


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The models that a field of this type may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for inner in get_args(annotation) for m in models_in(inner)]
