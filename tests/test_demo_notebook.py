"""The notebook of the documentation, cell by cell in a kernel of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "demo.ipynb"


def text_of(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


def test_the_notebook_runs(tiny_dir, monkeypatch):
    monkeypatch.setenv("MODEL", str(tiny_dir("phi3")))
    # A kernel of this very Python, whatever kernels are installed for others.
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "outputs are not committed"
    client = nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(NOTEBOOK.parent)}})
    client.create_kernel_manager()
    client.km.kernel_spec.argv = command
    client.execute()
    by_code = {cell.source.splitlines()[0]: cell for cell in notebook.cells if cell.cell_type == "code"}
    first, last = [cell for start, cell in by_code.items() if "folder" in start or "StreamClient(" in start]
    assert "frames seen, " in text_of(first)
    assert "num_frames_seen=9" in text_of(last)
    assert any("IFrame" in str(output.get("data", {})) for cell in by_code.values() for output in cell.outputs)
