"""Time architectures on this machine as its table was measured, to verify what was predicted."""

import subprocess
import sys
import tempfile
from pathlib import Path

from engine import onnx_timing as bench
from engine.blocks.latency_table import LatencyTable
from ofa.space.codes import Codes
from ofa.space.space import Space
from predictors.latency.kit import export_kit, network_name
from predictors.latency.timings import read_timings, value_of

ROUNDS = 5  # memory lies elsewhere in each session, which alone changes latency by some percent
SECONDS = 0.2  # of each round


def is_of_this_machine(table: LatencyTable) -> bool:
    """Whether a table was measured on a machine like this one, with the same runtime.

    A table whose machine is not known, such as an imported one, is of no machine.
    """
    this = (bench.machine_name(), bench.runtime_name())
    return bool(table.machine) and (table.machine, table.runtime) == this


def time_architecture(space: Space, row: Codes, table: LatencyTable) -> float:
    """Milliseconds of the median run of an encoded architecture on this machine, with random weights.

    It is timed as a kit of this one network, so the result compares with the table.

    Args:
        space: of the architecture.
        row: its codes (F,).
        table: says for which classes and channels, with how many threads and by which clock.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_kit(space, [], row[None], table.classes, table.channels, folder, _nothing)
        flags = ["--rounds", str(ROUNDS), "--threads", str(table.threads), "--seconds", str(SECONDS)]
        # Another process: onnxruntime changes how this one would compute with denormal numbers from then on.
        subprocess.run([sys.executable, str(folder / "bench.py"), *flags], check=True, capture_output=True)
        timings = read_timings(folder / "latency.csv", "cpu" if table.clock == "cpu" else "wall")
    return value_of(timings.ms[network_name(row)])


def _nothing(written: str) -> None:
    """No progress is shown: one network takes no time to write."""
