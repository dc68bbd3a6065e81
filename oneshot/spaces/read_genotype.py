"""Read a genotype: a published name, a file, a folder of a search, or what the reference codes write.

`find_genotype` reads our own form and those of the reference codes: their flat lists of (operation, input),
two a node, as JSON, YAML or Python text; FairDARTS's (operation, node, input) (2020, arXiv:1911.12126), which
leaves nodes without edges out of the output; GDAS's (operation, input, weight); AutoDL-Projects' tuples with
two more fields that are None, dictionaries and `Structure(...)`; and NAS-Bench-201's strings.
"""

import ast
import re
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from engine.config import validate
from engine.errors import UserError, nearest, shortened
from engine.outside.documents import DocumentError, parse_json, parse_yaml, read_text
from engine.outside.names import expanded
from engine.run import Run, read_json
from oneshot.chains.genotype import published_chain, published_chains
from oneshot.spaces.genotype import AnyGenotype, Genotype, genotype_kind
from oneshot.spaces.nasbench201_string import genotype_of_string

RENAMED = {  # what PR-DARTS and GDAS call operations of DARTS
    "dua_sepc_3x3": "sep_conv_3x3",
    "dua_sepc_5x5": "sep_conv_5x5",
    "dil_sepc_3x3": "dil_conv_3x3",
    "dil_sepc_5x5": "dil_conv_5x5",
    "conv_1x7_7x1": "conv_7x1_1x7",
}
EDGES_A_NODE = {"normal": 2, "reduce": 2, "recurrent": 1}  # of a flat list
MOST_STATES = 1000  # of a cell; published ones have 6 to 12
MOST_BYTES = 64 * 1000**2  # of a log, in which the genotype of every epoch may stand
FLAT = ("normal", "normal_concat", "reduce", "reduce_concat")
FLAT_RECURRENT = ("recurrent", "concat")
# How AutoDL-Projects prints a cell of NAS-Bench-201.
STRUCTURE = re.compile(r"Structure\(\d+ nodes with (\|.+\|)\)")
UNUSED = ("connectN", "connects")  # fields of AutoDL-Projects' genotypes that are None in each of them


@cache
def published_genotypes() -> dict[str, dict[str, Any]]:
    """The packaged cells by name, in the flat form, each with its source."""
    found = parse_yaml(files("oneshot.spaces").joinpath("genotypes.yaml").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def find_genotype(text: str) -> AnyGenotype:
    """The genotype that `text` names or writes down: `find_genotype("DARTS_V2")`.

    Args:
        text: a published name; a JSON or YAML file, or a text file such as a log, of which the last
            `Genotype(...)` counts; the folder of a finished search; JSON; what reference codes print,
            `Genotype(normal=[('sep_conv_3x3', 1), ...], ...)`; or a string of NAS-Bench-201.

    Raises:
        UserError: it is none of these, or not a valid genotype.
    """
    text = text.strip()
    # Names first, whatever their case; a file of that name can be given as ./NAME.
    for name, entry in published_genotypes().items():
        if name.lower() == text.lower():
            flat = {key: value for key, value in entry.items() if key != "source"}
            return _genotype(flat, name)
    for name in published_chains():
        if name == text.lower():
            return published_chain(name)
    if text.startswith("{"):
        return _from_braces(text, "inline JSON")
    if "Genotype(" in text:
        return _genotype(_from_python(text, "inline text"), "inline text")
    if text.startswith("|"):
        return genotype_of_string(text)
    structure = STRUCTURE.fullmatch(text)
    if structure:
        return genotype_of_string(structure[1])
    path = expanded(Path(text))
    if _is_there(path.is_dir):
        run = Run.open(path, "--genotype", "oneshot.search")
        return _genotype(read_json(run.path / "genotype.json"), str(path))
    if _is_there(path.is_file):
        return _from_file(path)
    raise UserError(
        f"There is no genotype '{shortened(text)}': it is no file, no folder of a search, no JSON and no "
        f"published name; {nearest(text, [*published_genotypes(), *published_chains()])}"
    )


def _is_there(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except (OSError, ValueError):  # a text that is too long for a name, or has a NUL character
        return False


def _from_file(path: Path) -> AnyGenotype:
    content = read_text(path, MOST_BYTES)
    if "Genotype(" in content:
        return _genotype(_from_python(content, str(path)), str(path))
    if content.lstrip().startswith("{"):
        return _from_braces(content, str(path))
    try:
        values = parse_yaml(content)
    except DocumentError as error:
        raise UserError(f"Genotype file '{path}' is neither JSON nor YAML ({error}).") from None
    return _genotype(values, str(path))


def _from_braces(text: str, source: str) -> AnyGenotype:
    """From JSON, or from a dictionary as Python prints it."""
    try:
        values = parse_json(text)
    except DocumentError as error:
        try:
            values = ast.literal_eval(text)
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
            raise UserError(f"{source}: the genotype is not valid JSON ({error}).") from None
    return _genotype(values, source)


def _from_python(text: str, source: str) -> dict[str, Any]:
    """The arguments of the last `Genotype(...)` in a text, evaluated as literals, ranges among them."""
    # A log prints the genotype of every epoch; the last one is what was found.
    start = text.rindex("Genotype(")
    end = _closing(text, start + len("Genotype("))
    try:
        call = ast.parse(text[start:end].strip(), mode="eval").body
        assert isinstance(call, ast.Call)
        # Without keywords, the number of arguments tells the kind.
        names = FLAT_RECURRENT if len(call.args) == 2 else (*FLAT, *UNUSED)
        values = {name: _literal(value) for name, value in zip(names, call.args, strict=False)}
        for argument in call.keywords:
            values[str(argument.arg)] = _literal(argument.value)
        return values
    # The last two: too many brackets in each other.
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise UserError(
            f"{source}: '{text[start : start + 40]}...' cannot be read; it must be "
            "Genotype(normal=[('sep_conv_3x3', 1), ...], normal_concat=range(2, 6), reduce=..., "
            "reduce_concat=...) or Genotype(recurrent=[...], concat=...)."
        ) from None


def _closing(text: str, start: int) -> int:
    """Behind the parenthesis that closes the one before `start`; the end of the text if none does."""
    depth = 1
    for position in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position + 1
    return len(text)


def _literal(node: ast.expr) -> Any:
    """The value of a literal, of `range(...)` or of `list(...)`; nothing is executed."""
    match node:
        case ast.Call(func=ast.Name(id="range"), args=args):
            states = range(*[_literal(arg) for arg in args])
            # The text decides how long the list is, so it is compared before it is made.
            if len(states) > MOST_STATES:
                raise ValueError(f"a range of {len(states)} states")
            return list(states)
        case ast.Call(func=ast.Name(id="list"), args=args):
            return list(*[_literal(arg) for arg in args])
    return ast.literal_eval(node)


def _genotype(values: Any, source: str) -> AnyGenotype:
    """Our own or the flat form, as a genotype."""
    if not isinstance(values, dict):
        raise UserError(
            f"{source}: a genotype must hold 'name: value' pairs, but holds {type(values).__name__}."
        )
    # Ours has `cells`; the flat forms have a field for each kind of cell.
    if not ({"normal", "reduce", "recurrent"} & values.keys()):
        return validate(genotype_kind(values), values, source)
    for name in UNUSED:
        if values.get(name) is not None:
            raise UserError(f"{source}: '{name}' is {values[name]!r}; only cells where it is None are known.")
    values = {name: value for name, value in values.items() if name not in UNUSED}
    recurrent = "recurrent" in values
    known = FLAT_RECURRENT if recurrent else FLAT
    # A misspelt field is reported first, since it is the reason why another one is missing.
    for name in values:
        if name not in known:
            raise UserError(f"{source}: there is no field '{name}'; {nearest(str(name), known)}")
    for name in known:
        if name not in values:
            raise UserError(f"{source}: '{name}' is missing.")
    kinds = {"recurrent": "concat"} if recurrent else {"normal": "normal_concat", "reduce": "reduce_concat"}
    cells = {kind: _flat_cell(kind, values[kind], values[output], source) for kind, output in kinds.items()}
    return validate(Genotype, {"space": "recurrent" if recurrent else "darts", "cells": cells}, source)


def _flat_cell(kind: str, entries: Any, output: Any, source: str) -> dict[str, Any]:
    """A flat cell as `Cell`'s fields, from entries of any of the forms that this module's docstring lists."""
    wrong = UserError(
        f"{source}: the {kind} cell must be a list of [operation, input], {EDGES_A_NODE[kind]} a node, "
        "or of [operation, node, input], and its output a list of states."
    )
    if not isinstance(entries, list | tuple) or not isinstance(output, list | tuple) or not entries:
        raise wrong
    # A list is made for each state, so what the text says of their number is compared first.
    states = [*output, *(entry[1] for entry in entries if _is(entry, str, int, int))]
    if not all(type(state) is int and 0 <= state <= MOST_STATES for state in states):
        raise wrong
    if all(_is_list_of_edges(entry) for entry in entries):
        grouped = [list(node) for node in entries]  # already a list for each node
    elif all(_is(entry, str, int, int) for entry in entries):
        grouped = _by_node(entries, output)
        # FairDARTS's code leaves nodes without edges out of the output.
        output = [state for state in output if state < 2 or grouped[state - 2]]
    else:
        size = EDGES_A_NODE[kind]
        if len(entries) % size:
            raise wrong
        grouped = [list(entries[i : i + size]) for i in range(0, len(entries), size)]
    nodes = []
    for node in grouped:
        if not all(_is(edge, str, int) or _is(edge, str, int, float) for edge in node):
            raise wrong
        nodes.append([(RENAMED.get(edge[0], edge[0]), edge[1]) for edge in node])
    return {"nodes": nodes, "output": list(output)}


def _by_node(entries: Any, output: Any) -> list[list[tuple[str, int]]]:
    """(operation, node, input) as (operation, input) for each node from 2 on."""
    last = max([*(target for _, target, _ in entries), *output])
    grouped: list[list[tuple[str, int]]] = [[] for _ in range(2, last + 1)]
    for name, target, source in entries:
        if target >= 2:
            grouped[target - 2].append((name, source))
    return grouped


def _is_list_of_edges(entry: Any) -> bool:
    return isinstance(entry, list | tuple) and not (entry and isinstance(entry[0], str))


def _is(entry: Any, *kinds: type) -> bool:
    """Whether an entry is a list of values of these types."""
    return isinstance(entry, list | tuple) and [type(part) for part in entry] == list(kinds)
