"""What a report measures on test images, as tasks that ranks share: texts go out, and texts come back."""

from typing import Literal

import numpy as np

from engine.config import Config
from engine.statistics import Floats
from ofa.space.arch import Arch
from ofa.trained import TrainedSupernet
from ofa.tuned import SubnetToMeasure
from predictors.reporting.alone import test_hits


class TestTask(Config):
    """A subnet and what is asked of it: which images it gets right, or what it takes each class for."""

    what: Literal["hits", "confusion"]
    subnet: SubnetToMeasure


def hits_task(arch: Arch) -> str:
    """Ask which test images a subnet of the supernet gets right; `read_hits` reads the answer."""
    return TestTask(what="hits", subnet=SubnetToMeasure(name="", arch=arch)).model_dump_json()


def confusion_task(name: str, arch: Arch, tuned: bool) -> str:
    """Ask what a subnet takes each class of test images for; `counts_from_text` reads the answer.

    Args:
        name: its budget.
        arch: the subnet.
        tuned: whether its tuned weights count.
    """
    subnet = SubnetToMeasure(name=name, arch=arch, tuned=tuned)
    return TestTask(what="confusion", subnet=subnet).model_dump_json()


def measure_on_test(trained: TrainedSupernet, task_json: str) -> str:
    """Do such a task."""
    task = TestTask.model_validate_json(task_json)
    if task.what == "confusion":
        return task.subnet.confusion(trained, "test")
    hits_N = test_hits(trained.subnet(task.subnet.arch), trained).astype(np.uint8)
    return "".join(map(str, hits_N))  # a digit an image


def read_hits(text: str) -> Floats:
    """1 for each test image (N,) that the subnet classified correctly, else 0."""
    return np.array([digit == "1" for digit in text], np.float64)
