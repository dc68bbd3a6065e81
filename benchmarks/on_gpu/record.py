"""What a GPU day found, as a page for benchmarks/records/ and as JSON."""

import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.on_gpu.parts import read_results

NOTHING = "-"


def machine(rehearsal: bool) -> dict[str, Any]:
    """The device and the versions."""
    facts: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__}
    if rehearsal:
        return {"device": "pretended: a rehearsal, no figure is of a GPU", **facts}
    properties = torch.cuda.get_device_properties(0)
    facts |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    facts |= {
        "memory_GB": round(properties.total_memory / 1e9),
        "cpu": platform.processor() or platform.machine(),
    }
    return {"device": properties.name, **facts}


def write_record(out: Path, command: str, commit: str, rehearsal: bool, order: Sequence[str]) -> Path:
    """Write gpu_day.json and gpu_day.md; returns the page.

    Args:
        out: the folder of results.
        command, commit: what was run.
        rehearsal: whether the GPU was pretended.
        order: the names of the parts as they were to run.
    """
    read = read_results(out)
    results = {name: read[name] for name in order if name in read}
    facts = machine(rehearsal)
    whole = {"machine": facts, "command": command, "commit": commit, "parts": results}
    (out / "gpu_day.json").write_text(json.dumps(whole, indent=1))
    lines = ["# A day with a GPU", "", f"    {command}", ""]
    lines += [", ".join(f"{name} {value}" for name, value in facts.items()) + f"; commit {commit}.", ""]
    lines += ["| part | status | seconds |", "|---|---|---|"]
    for name, result in results.items():
        status = result["status"] + (f": {result['error']}" if "error" in result else "")
        lines.append(f"| {name} | {status} | {result['seconds']} |")
    done = {name: result["result"] for name, result in results.items() if result["status"] == "done"}
    lines += _checks(done) + _speeds(done) + _others(done)
    page = out / "gpu_day.md"
    page.write_text("\n".join(lines) + "\n")
    return page


def _checks(done: dict[str, Any]) -> list[str]:
    lines = ["", "## What must hold", ""]
    for name in ("contract", "parity", "bits"):
        if name in done:
            found = done[name]
            counts = f"{found['right']} right, {len(found['wrong'])} not, {len(found['skipped'])} not reached"
            lines.append(f"- **{name}**: {counts}.")
            for wrong in found["wrong"]:
                lines.append(f"  - {wrong}: {json.dumps(found['cases'][wrong])}")
    return lines


def _speeds(done: dict[str, Any]) -> list[str]:
    lines = ["", "## Speed of a step", ""]
    lines += [
        "Milliseconds (median), images or words a second, peak GB; the ratio is plain by the best of ours.",
        "",
    ]
    lines += ["| step | eager | graphs | compiled | plain | ratio |", "|---|---|---|---|---|---|"]
    for name, result in done.items():
        if not name.startswith("speed "):
            continue
        step = name.removeprefix("speed ")
        ways = result | done.get(f"compiled {step}", {})
        cells = [_speed(ways.get(way)) for way in ("eager", "graphs", "compiled", "plain")]
        ours = [ways[way]["ms"] for way in ("eager", "graphs", "compiled") if "ms" in ways.get(way, {})]
        ratio = NOTHING
        if ours and "ms" in ways.get("plain", {}):
            ratio = f"{ways['plain']['ms'] / max(min(ours), 1e-6):.2f}"
        named = f"{step}, {result.get('eager', {}).get('precision', NOTHING)}"
        lines.append(f"| {named} | {' | '.join(cells)} | {ratio} |")
    return lines


def _speed(found: dict[str, Any] | None) -> str:
    if found is None:
        return NOTHING
    if "error" in found:
        return found["error"].replace("|", "/")[:60]
    return f"{found['ms']:.1f} ms, {found['items_a_second']:.0f}/s, {found['peak_GB']:.2f} GB"


def _others(done: dict[str, Any]) -> list[str]:
    """The remaining parts, as their JSON without long lists."""
    lines = ["", "## Runs", ""]
    for name, result in done.items():
        if name in ("contract", "parity", "bits") or name.split()[0] in ("speed", "compiled"):
            continue
        short = {key: value for key, value in result.items() if key != "of_epochs"}
        lines += [f"### {name}", "", "```json", json.dumps(short, indent=1), "```", ""]
    return lines
