"""A genotype: which operations a found cell keeps and where each reads from. This is what a search hands to
retraining.

States of a cell are numbered from its inputs on: in the DARTS space 0 and 1 are the outputs of the two cells
before and 2 to 5 the nodes; in NAS-Bench-201 and in the recurrent space 0 is the input and the nodes start at
1.

`find_genotype` reads ours and what the reference codes write: their flat lists of (operation, input), two a
node, as JSON, YAML or Python text; FairDARTS's (operation, node, input) (2020, arXiv:1911.12126), which
leaves nodes without edges out of the output; and GDAS's (operation, input, weight).
"""

import ast
import json
from functools import cache
from importlib.resources import files
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import Field, model_validator

from engine.config import Config, validate
from engine.errors import UserError, nearest
from engine.run import Run, read_json
from oneshot.spaces.cells import find_space

Edge = tuple[str, int]  # (operation, the state it reads)
RENAMED = {  # what PR-DARTS and GDAS call operations of DARTS
    "dua_sepc_3x3": "sep_conv_3x3",
    "dua_sepc_5x5": "sep_conv_5x5",
    "dil_sepc_3x3": "dil_conv_3x3",
    "dil_sepc_5x5": "dil_conv_5x5",
    "conv_1x7_7x1": "conv_7x1_1x7",
}
EDGES_A_NODE = {"normal": 2, "reduce": 2, "recurrent": 1}  # of a flat list
FLAT = ("normal", "normal_concat", "reduce", "reduce_concat")
FLAT_RECURRENT = ("recurrent", "concat")


class Cell(Config):
    """One cell."""

    nodes: tuple[tuple[Edge, ...], ...] = Field(
        description="for each node in order, the edges whose sum it is"
    )
    output: tuple[int, ...] = Field(
        description="the states that the cell returns: concatenated (DARTS), averaged (recurrent) or the last"
    )


class Genotype(Config):
    """The cells of a network, by kind: `normal` and `reduce` (DARTS), `cell` (NAS-Bench-201) or
    `recurrent`."""

    space: str = Field("darts", description="search space that it belongs to")
    cells: dict[str, Cell]

    @model_validator(mode="after")
    def _reads_only_what_exists(self) -> Self:
        space = find_space(self.space)
        if set(self.cells) != set(space.cells):
            raise ValueError(
                f"a genotype of space '{self.space}' has the cells {', '.join(space.cells)}, not "
                f"{', '.join(self.cells)}"
            )
        for kind, cell in self.cells.items():
            for target, edges in enumerate(cell.nodes, start=space.inputs):
                for operation, source in edges:
                    if operation not in space.known:
                        raise ValueError(
                            f"{kind} cell: '{operation}' is not an operation; "
                            f"{nearest(operation, space.known)}"
                        )
                    if not 0 <= source < target:
                        raise ValueError(
                            f"{kind} cell: node {target} cannot read state {source}; it reads states below "
                            "its own number"
                        )
            last = space.inputs + len(cell.nodes) - 1
            if not cell.output or not all(0 <= state <= last for state in cell.output):
                raise ValueError(
                    f"{kind} cell: its output {list(cell.output)} must name states from 0 to {last}"
                )
        return self


@cache
def published() -> dict[str, dict[str, Any]]:
    """The packaged cells by name, in the flat form, each with its source."""
    found = yaml.safe_load(files("oneshot.spaces").joinpath("genotypes.yaml").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def find_genotype(text: str) -> Genotype:
    """The genotype that `text` names or writes down.

    Args:
        text: a published name; a JSON or YAML file, or a text file such as a log, of which the last
            `Genotype(...)` counts; the folder of a finished search; JSON; or what reference codes print,
            `Genotype(normal=[('sep_conv_3x3', 1), ...], ...)`.

    Raises:
        UserError: it is none of these, or not a valid genotype.
    """
    text = text.strip()
    for name, entry in published().items():
        if name.lower() == text.lower():
            return _genotype({key: value for key, value in entry.items() if key != "source"}, name)
    if text.startswith("{"):
        return _from_json(text, "inline JSON")
    if "Genotype(" in text:
        return _genotype(_from_python(text, "inline text"), "inline text")
    if text.startswith("|"):
        from oneshot.nasbench201.table import decode, parse_string

        return decode(parse_string(text))
    path = Path(text).expanduser()
    if path.is_dir():
        return _genotype(
            read_json(Run.open(path, "--genotype", "oneshot.search").path / "genotype.json"), str(path)
        )
    if path.is_file():
        return _from_file(path)
    raise UserError(
        f"There is no genotype '{text}': it is no file, no folder of a search, no JSON and no published "
        f"name; {nearest(text, published())}"
    )


def _from_file(path: Path) -> Genotype:
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Genotype file '{path}' cannot be read ({error}).") from None
    if "Genotype(" in content:
        return _genotype(_from_python(content, str(path)), str(path))
    if content.lstrip().startswith("{"):
        return _from_json(content, str(path))
    try:
        values = yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise UserError(
            f"Genotype file '{path}' is neither JSON nor YAML ({' '.join(str(error).split())})."
        ) from None
    return _genotype(values, str(path))


def _from_json(text: str, source: str) -> Genotype:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise UserError(f"{source}: the genotype is not valid JSON ({error}).") from None
    return _genotype(values, source)


def _from_python(text: str, source: str) -> dict[str, Any]:
    """The arguments of the last `Genotype(...)` in a text, evaluated as literals, ranges among them."""
    start = text.rindex("Genotype(")
    after = start + len("Genotype(")
    depths = list(accumulate(((letter == "(") - (letter == ")") for letter in text[after:]), initial=1))
    end = after + depths.index(0) if 0 in depths else len(text)
    try:
        call = ast.parse(text[start:end].strip(), mode="eval").body
        assert isinstance(call, ast.Call)
        names = FLAT_RECURRENT if len(call.args) == 2 else FLAT
        pairs = [
            *zip(names, call.args, strict=False),
            *((argument.arg, argument.value) for argument in call.keywords),
        ]
        return {str(name): _literal(value) for name, value in pairs}
    except (SyntaxError, ValueError, TypeError):
        raise UserError(
            f"{source}: '{text[start : start + 40]}...' cannot be read; it must be "
            "Genotype(normal=[('sep_conv_3x3', 1), ...], "
            "normal_concat=range(2, 6), reduce=..., reduce_concat=...) or Genotype(recurrent=[...], "
            "concat=...)."
        ) from None


def _literal(node: ast.expr) -> Any:
    match node:
        case ast.Call(func=ast.Name(id="range" | "list" as kind), args=args):
            values = [_literal(arg) for arg in args]
            return list(range(*values)) if kind == "range" else list(*values)
    return ast.literal_eval(node)


def _genotype(values: Any, source: str) -> Genotype:
    """Ours or the flat form, as a genotype."""
    if not isinstance(values, dict):
        raise UserError(
            f"{source}: a genotype must hold 'name: value' pairs, but holds {type(values).__name__}."
        )
    if not ({"normal", "reduce", "recurrent"} & values.keys()):
        return validate(Genotype, values, source)
    recurrent = "recurrent" in values
    known = FLAT_RECURRENT if recurrent else FLAT
    for name in values:
        if name not in known:
            raise UserError(f"{source}: there is no field '{name}'; {nearest(str(name), known)}")
    for name in known:
        if name not in values:
            raise UserError(f"{source}: '{name}' is missing.")
    kinds = {"recurrent": "concat"} if recurrent else {"normal": "normal_concat", "reduce": "reduce_concat"}
    cells = {kind: _cell(kind, values[kind], values[concat], source) for kind, concat in kinds.items()}
    return validate(Genotype, {"space": "recurrent" if recurrent else "darts", "cells": cells}, source)


def _cell(kind: str, entries: Any, output: Any, source: str) -> dict[str, Any]:
    """A flat cell as `Cell`'s fields, from entries of any of the forms that this module's docstring lists."""
    wrong = UserError(
        f"{source}: the {kind} cell must be a list of [operation, input], {EDGES_A_NODE[kind]} a node, "
        "or of [operation, node, input], and its output a list of states."
    )
    if not isinstance(entries, list | tuple) or not isinstance(output, list | tuple) or not entries:
        raise wrong
    if all(
        isinstance(entry, list | tuple) and not (entry and isinstance(entry[0], str)) for entry in entries
    ):
        grouped = [list(node) for node in entries]  # already a list for each node
    elif all(_is(entry, str, int, int) for entry in entries):
        last = max(max(target for _, target, _ in entries), *output)
        grouped = [
            [(name, source) for name, target, source in entries if target == node]
            for node in range(2, last + 1)
        ]
        output = [state for state in output if state < 2 or grouped[state - 2]]
    else:
        size = EDGES_A_NODE[kind]
        if len(entries) % size:
            raise wrong
        grouped = [list(entries[i : i + size]) for i in range(0, len(entries), size)]
    if not all(_is(edge, str, int) or _is(edge, str, int, float) for node in grouped for edge in node):
        raise wrong
    nodes = [[(RENAMED.get(edge[0], edge[0]), edge[1]) for edge in node] for node in grouped]
    return {"nodes": nodes, "output": list(output)}


def _is(entry: Any, *kinds: type) -> bool:
    return isinstance(entry, list | tuple) and [type(part) for part in entry] == list(kinds)
