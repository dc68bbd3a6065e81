"""The notebook runs from top to bottom and leaves the file that it promises; the scripts find a subnet."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import onnxruntime as ort
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "examples" / "notebook.ipynb"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Jupyter's own packages
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the same: sockets of the kernel's client
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_notebook_ends_with_a_verified_file(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "the notebook is stored without outputs"
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    session = ort.InferenceSession(str(tmp_path / "digits.onnx"), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].name == "image"
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    macs, best = re.findall(r"([\d,]+) MACs: ([\d.]+)%", printed)[0]
    assert int(macs.replace(",", "")) <= 300_000
    assert float(best) > 80


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optuna_tpe.py", "optuna_sampler.py"])
def test_a_sampler_finds_an_architecture_under_the_limit(name: str) -> None:
    words = [sys.executable, "-W", "error", str(NOTEBOOK.parent / name)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = re.match(r"([\d,]+) MACs: 0\.(\d+)\nresolution=", done.stdout)
    assert found and 200_000 < int(found[1].replace(",", "")) <= 300_000
