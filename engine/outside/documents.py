"""The one reader of JSON and the one reader of YAML. Both have limits, since a file may come from anybody.

The limits are far above what the toolkit writes. What is over them, or is damaged in whatever way, ends in a
`UserError` of one sentence: never in an error of the parser, an endless loop or a full memory.
"""

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from engine.errors import UserError, shortened

MOST_JSON_BYTES = 256 * 1000**2  # a manifest of 50,000 classes has 2 MB
MOST_YAML_BYTES = 16 * 1000**2  # the largest published latency table has 3 MB, which takes seconds
MOST_DEPTH = 64  # of lists and mappings in each other; a run's config.yaml has 6
MOST_DIGITS = 30  # of a whole number; a 64-bit number has 19 or 20
# Nodes of a YAML file once its aliases are followed: a few lines of them can stand for billions.
MOST_NODES = 2 * 1000**2

LONG_NUMBER = re.compile(rf"\d{{{MOST_DIGITS + 1}}}")
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")  # half a character, which no file or terminal can be given
# The parser in C is ten times as fast, and refuses deep nesting without an overflow of the stack.
BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# Not dates, which nothing here takes and JSON does not have: 2024-05-01 is read as text.
PLAIN_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")}
MERGE = "tag:yaml.org,2002:merge"  # the tag of the key `<<`


def read_text(path: Path, most_bytes: int) -> str:
    """The text of a file in UTF-8.

    Raises:
        UserError: it is missing, too large, or not text.
    """
    try:
        with path.open("rb") as file:
            content = file.read(most_bytes + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError:  # a NUL character in the name
        raise UserError(f"{str(path)!r} is not the name of a file.") from None
    if len(content) > most_bytes:
        raise UserError(f"{path} cannot be read: it has more than {most_bytes // 1000**2} MB.")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start}"
        raise UserError(f"{path} cannot be read: it is not text in UTF-8 ({reason}).") from None


class DocumentError(ValueError):
    """Why a document cannot be used: half a sentence."""


def parse_json(text: str | bytes) -> Any:
    """The value that a JSON text holds, within the limits of this module.

    Raises:
        DocumentError: it is no JSON, names a key twice, or is beyond a limit.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        # Numbers are only looked at one by one where one of them is too long, as that takes time.
        number: Callable[[str], int] | None = _whole_number if LONG_NUMBER.search(text) else None
        value = json.loads(text, object_pairs_hook=_without_duplicates, parse_int=number)
    except RecursionError:
        raise DocumentError(f"it is nested more than {MOST_DEPTH} deep") from None
    except UnicodeDecodeError as error:
        raise DocumentError(f"it is not text in UTF-8 ({error.reason})") from None
    except DocumentError:
        raise
    except ValueError as error:
        raise DocumentError(shortened(str(error))) from None
    # No document is deeper than it has opening brackets, and most lines of JSONL have few.
    if text.count("[") + text.count("{") > MOST_DEPTH or SURROGATE.search(text):
        _check_values(value)
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set[str]()
        for key, _ in pairs:
            if key in seen:
                raise DocumentError(f"it names {shortened(repr(key))} twice")
            seen.add(key)
    return found


def _whole_number(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise DocumentError(f"it holds a number of {len(text)} digits, and {MOST_DIGITS} are the most")
    return int(text)


def _check_values(value: Any) -> None:
    """Refuse values that are nested too deep, or texts with half a character."""
    level = [value]
    for _ in range(MOST_DEPTH):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                inner += [*one.keys(), *one.values()]
            elif isinstance(one, list):
                inner += one
            elif isinstance(one, str) and not one.isascii() and _has_surrogate(one):
                raise DocumentError(f"it holds half a character: {shortened(ascii(one))}")
        level = inner
        if not level:
            return
    raise DocumentError(f"it is nested more than {MOST_DEPTH} deep")


def _has_surrogate(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)


class _PlainLoader(BASE):  # type: ignore[misc]
    """YAML with the values that JSON has. The Python loader is the base where the C library is missing."""


def _plain_resolvers() -> dict[str, list[tuple[str, Any]]]:
    """What YAML reads without quotation marks, by the first letter: all but dates."""
    kept = {}
    for letter, resolvers in BASE.yaml_implicit_resolvers.items():
        kept[letter] = [resolver for resolver in resolvers if resolver[0] in {*PLAIN_TAGS, MERGE}]
    return kept


_PlainLoader.yaml_implicit_resolvers = _plain_resolvers()


def parse_yaml(text: str) -> Any:
    """The value that a YAML text holds, within the limits of this module. No tag can build an object.

    Raises:
        DocumentError: it is no YAML, names a key twice, or is beyond a limit.
    """
    loader = None
    try:
        loader = _PlainLoader(text)
        # The tree of nodes is no larger than the text: an alias is the node that it names, not a copy.
        node = loader.get_single_node()
        if node is None:
            return None
        _count_nodes(node, 1, {})
        return loader.construct_document(node)
    except RecursionError:
        raise DocumentError(f"it is nested more than {MOST_DEPTH} deep") from None
    except DocumentError:
        raise
    # ValueError: a number that cannot be read, such as `0b` or `0x_`; TypeError: a list as a key.
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        # The text of a YAML error has several lines; a sentence has one.
        raise DocumentError(shortened(" ".join(str(error).split()), 300)) from None
    finally:
        if loader is not None:
            loader.dispose()


def _count_nodes(node: yaml.Node, depth: int, counts: dict[int, int]) -> int:
    """How many nodes this one stands for, its aliases followed; refuses what is beyond a limit.

    Args:
        node: where to start.
        depth: how deep it lies.
        counts: of the nodes that were counted before, by their identity, so that each is looked at once.
            A node that is being counted has 0: whoever meets it inside itself is in a circle.
    """
    if depth > MOST_DEPTH:
        raise DocumentError(f"it is nested more than {MOST_DEPTH} deep")
    if node.tag not in PLAIN_TAGS and node.tag != MERGE:
        raise DocumentError(f"it has the tag {shortened(node.tag)}, and only plain values are read")
    if isinstance(node, yaml.ScalarNode):
        _check_scalar(node)
        return 1
    known = counts.get(id(node))
    if known == 0:
        raise DocumentError("an alias in it stands for what holds the alias")
    if known is not None:
        return known
    counts[id(node)] = 0
    inner = list(node.value)
    if isinstance(node, yaml.MappingNode):
        _refuse_duplicates(node)
        inner = list(itertools.chain.from_iterable(node.value))  # keys and values by turns
    total = 1 + sum(_count_nodes(part, depth + 1, counts) for part in inner)
    if total > MOST_NODES:
        raise DocumentError(f"its aliases make more than {MOST_NODES:,} values of it")
    counts[id(node)] = total
    return total


def _check_scalar(node: yaml.ScalarNode) -> None:
    # Only letters of whole numbers count: they may be written as 1_000 or 0x3e8, too.
    if node.tag.endswith(":int") and len(node.value) > MOST_DIGITS:
        raise DocumentError(f"it holds a number of {len(node.value)} digits, and {MOST_DIGITS} are the most")
    if not node.value.isascii() and _has_surrogate(node.value):
        raise DocumentError(f"it holds half a character: {shortened(ascii(node.value))}")


def _refuse_duplicates(node: yaml.MappingNode) -> None:
    seen = set[tuple[str, str]]()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise DocumentError("a key in it is a list or a mapping")
        name = key.tag, key.value
        # PyYAML alone would take the last one and say nothing.
        if name in seen:
            line = key.start_mark.line + 1
            raise DocumentError(f"it names '{shortened(key.value)}' twice, the second time in line {line}")
        seen.add(name)
