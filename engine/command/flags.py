"""The flags of a command: one for each field, with dots for the fields of its sections."""

from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from engine.config import models_in, over_defaults, read_recipe, tags_of, unchecked

Kind = type[BaseModel]


class Flag(NamedTuple):
    """A flag, which several kinds of a section may share.

    Args:
        name: the flag as it is typed, such as `--sgd.lr`.
        section: the section it belongs to, such as `sgd`; empty for a flag of the command itself.
        value: what follows the flag, such as `N` or `{cosine,exponential}`; empty for a switch.
        text: what the flag does; kinds that describe it differently are joined by "; or".
        defaults: each default as it would be typed, with the kinds that have it; empty for a required flag.
        kinds: names of the kinds of the section that have the flag.
        all_kinds: whether every kind of the section has the flag.
        positional: whether the value is given without the flag's name.
    """

    name: str
    section: str
    value: str
    text: str
    defaults: dict[str, list[str]]
    kinds: list[str]
    all_kinds: bool
    positional: bool


def flag_name(path: str) -> str:
    """`sgd.weight_decay` as `--sgd.weight-decay`."""
    return f"--{path.replace('_', '-')}"


def is_list(field: FieldInfo) -> bool:
    """Whether the field holds several sections, such as a method's penalties."""
    # Lists are tuples in every configuration, which is frozen.
    return str(field.annotation).startswith("tuple")


def flag_names(model: Kind) -> set[str]:
    """Paths of the fields of a model, with dots for those of its sections, such as `sgd.weight_decay`."""
    names = set()
    for name, field in model.model_fields.items():
        name = field.alias or name
        sections = models_in(field.annotation)
        if not sections:
            names.add(name)
        for section in sections:
            names |= {f"{name}.{inner}" for inner in flag_names(section)}
    return names


def named_sections(model: Kind, prefix: str = "--") -> dict[str, bool]:
    """The flags of sections that are chosen by name, and whether each is a list of sections.

    Args:
        model: the command, or the model of a section of it.
        prefix: what stands before the names of its fields in a flag, such as `--sgd.`.
    """
    found = {}
    for name, field in model.model_fields.items():
        flag = f"{prefix}{name.replace('_', '-')}"
        kinds = models_in(field.annotation)
        # A section of one kind without a name, such as sgd, is only given field by field.
        if kinds and all(tags_of(kind) for kind in kinds):
            found[flag] = is_list(field)
        for kind in kinds:
            found |= named_sections(kind, f"{flag}.")
    return found


def flags_of(command: Kind, recipe: str | None = None) -> list[Flag]:
    """All flags in the order in which help shows them: the command's own, then section by section.

    Args:
        command: the command.
        recipe: whose values are the defaults where it has any; None: those of the command.

    Raises:
        UserError: the recipe cannot be found or read.
    """
    values = over_defaults(command, read_recipe(recipe)) | {"config": recipe} if recipe else {}
    # Without validation: it has the defaults, also where a required field has no value.
    found = list(_flags([command], [unchecked(command, values)], ""))
    return [f for f in found if not f.section] + [f for f in found if f.section]


def _flags(kinds: list[Kind], chosen: list[Any], section: str) -> Iterator[Flag]:
    """The flags of one section, those of its own sections included.

    Args:
        kinds: what the section may be.
        chosen: the section's default, or one for each kind of the section above it.
        section: its path, such as `sgd.schedule`; empty for the command itself.
    """
    # In the order of the fields; a field that several kinds have is one flag.
    names: list[str] = []
    for kind in kinds:
        names += [name for name in kind.model_fields if name not in names]
    for name in names:
        owners = [kind for kind in kinds if name in kind.model_fields]
        field = owners[0].model_fields[name]
        path = ".".join(filter(None, [section, field.alias or name]))
        defaults = [_default(kind, name, chosen) for kind in owners]
        inner = _inner_kinds(owners, name)
        # A list of sections is one flag: its parts have no place in a path with dots.
        if inner and not is_list(field):
            yield from _flags(inner, defaults, path)
        elif section and name == "name":
            yield _choice_of_kind(owners, chosen, section, path)
        else:
            yield Flag(
                name=flag_name(path),
                section=section,
                value=_value(field),
                text="; or ".join(_texts(owners, name)),
                defaults=_who_defaults_to_what(owners, defaults),
                kinds=_all_names(owners),
                all_kinds=len(owners) == len(kinds),
                positional=any(getattr(m, "__name__", "") == "_CliPositionalArg" for m in field.metadata),
            )


def _choice_of_kind(owners: list[Kind], chosen: list[Any], section: str, path: str) -> Flag:
    """The flag that says which kind the section is. Its default is that of the section."""
    names = _all_names(owners)
    default = getattr(chosen[0], "name", None)
    return Flag(
        name=flag_name(path),
        section=section,
        value="{" + ",".join(sorted(names)) + "}",
        text="",
        defaults={} if default is None else {str(default): []},
        kinds=names,
        all_kinds=True,
        positional=False,
    )


def _inner_kinds(owners: list[Kind], name: str) -> list[Kind]:
    """The kinds of section that the field `name` may hold in any of its owners."""
    found: list[Kind] = []
    for kind in owners:
        found += [model for model in models_in(kind.model_fields[name].annotation) if model not in found]
    return found


def _all_names(kinds: list[Kind]) -> list[str]:
    names: list[str] = []
    for kind in kinds:
        names += tags_of(kind)
    return names


def _texts(owners: list[Kind], name: str) -> list[str]:
    """The different descriptions of a field."""
    texts: list[str] = []
    for kind in owners:
        text = kind.model_fields[name].description
        if text and text not in texts:
            texts.append(text)
    return texts


def _who_defaults_to_what(owners: list[Kind], defaults: list[Any]) -> dict[str, list[str]]:
    """Each default as it is typed, with the names of the kinds that have it. Required flags have none."""
    found: dict[str, list[str]] = {}
    for kind, default in zip(owners, defaults, strict=True):
        if default is not PydanticUndefined:
            found.setdefault(_typed(default), []).extend(tags_of(kind))
    return found


def _default(kind: Kind, name: str, chosen: list[Any]) -> Any:
    """The default of a field of a section.

    If the section's own default is of this kind, that decides: `--sgd.schedule` may have other values as the
    default of one command than its class has. Else it is the default of the class.
    """
    for one in chosen:
        if type(one) is kind:
            return getattr(one, name, PydanticUndefined)
    return kind.model_fields[name].get_default(call_default_factory=True)


def _typed(default: Any) -> str:
    """A default as it would be typed."""
    match default:
        case None | () | "":
            return "none"
        case bool():
            return "on" if default else "off"
        case Path() if default.is_absolute():
            return default.name  # a default of `Located` is made absolute where the program was started
        case tuple():
            return ",".join(getattr(one, "name", None) or str(one) for one in default)
    return str(default)


def _value(field: FieldInfo) -> str:
    """What is typed after the flag."""
    if models_in(field.annotation):
        return "NAME,..." if all(tags_of(k) for k in models_in(field.annotation)) else "JSON"
    return _value_of(field.annotation)


def _value_of(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return "{" + ",".join(str(one) for one in inner) + "}"
    if origin in (Union, UnionType):
        # None is no value that is typed, and what else a union holds here is one type.
        return _value_of(next(one for one in inner if one is not NoneType))
    if origin is tuple:
        one = _value_of(inner[0])
        return f"{one},..." if inner[-1] is Ellipsis else ",".join([one] * len(inner))
    if get_origin(annotation) is not None and inner:  # Annotated
        return _value_of(inner[0])
    if annotation is bool:
        return ""
    return {"int": "N", "float": "X", "str": "TEXT", "Path": "PATH"}.get(annotation.__name__, "VALUE")
