"""Time architectures on this machine as its table was measured, to verify what was predicted."""

import math
import tempfile
from pathlib import Path

import numpy as np

from engine.onnx_timing import machine_name, plain_run, runtime_name, time_runs
from ofa.layers import layer_specs
from ofa.space.codes import Codes, decode
from ofa.space.space import Space
from predictors.latency.kit import write_network
from predictors.latency.table import LatencyTable

SESSIONS = 5  # memory lies elsewhere in each session, which alone changes latency by some percent
SECONDS = 0.2  # of each session


def is_of_this_machine(table: LatencyTable) -> bool:
    """Whether a table was measured on a machine like this one, with the same runtime.

    A table whose machine is not known, such as an imported one, is of no machine.
    """
    return bool(table.machine) and (table.machine, table.runtime) == (machine_name(), runtime_name())


def time_architecture(space: Space, row: Codes, table: LatencyTable) -> float:
    """Milliseconds of the median run of an encoded architecture on this machine, with random weights.

    The file and the way to time it are those of the kit, so the result compares with the table.

    Args:
        space: of the architecture.
        row: its codes (F,).
        table: says for which classes and channels, with how many threads and by which clock.
    """
    layers = layer_specs(space, decode(space, row), table.classes, table.channels)
    shape = [table.batch, table.channels, layers[0].size, layers[0].size]
    medians = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        write_network(space, layers, path)
        for _ in range(SESSIONS):
            run = plain_run(path, shape, table.threads)
            wall, cpu = time_runs(run, table.threads, SECONDS, at_most=math.inf)
            medians.append(float(np.median(cpu if table.clock == "cpu" else wall)))
    return float(np.median(medians))
