"""The notebook runs from top to bottom and leaves the file that it promises."""

import re
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
