"""The notebook of the documentation, cell by cell: in this process, and in a kernel of its own."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "demo.ipynb"


@pytest.fixture
def notebook(tiny_dir, monkeypatch):
    monkeypatch.setenv("MODEL", str(tiny_dir("phi3")))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "outputs are not committed"
    return notebook


def check(texts, shown):
    """Texts of the code cells by what they start with, and what is shown of all of them."""
    first, last = [text for start, text in texts.items() if "clip =" in start or "StreamClient(" in start]
    assert "frames seen, " in first
    assert "num_frames_seen=9" in last
    assert any("IFrame" in value for value in shown)


def test_the_cells_run_one_after_the_other(notebook, monkeypatch, capsys):
    """As a kernel does it, which shows the value of a cell that ends in an expression."""
    monkeypatch.chdir(NOTEBOOK.parent)
    plt.switch_backend("agg")
    names, texts, shown = {}, {}, []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            body = ast.parse(cell.source).body
            value = ast.Expression(body.pop().value) if isinstance(body[-1], ast.Expr) else None
            exec(compile(ast.Module(body, []), str(NOTEBOOK), "exec"), names)
            shown.append(repr(eval(compile(value, str(NOTEBOOK), "eval"), names)) if value else "")
            texts[cell.source.splitlines()[0]] = capsys.readouterr().out
    check(texts, shown)


@pytest.mark.slow
def test_it_runs_in_a_kernel(notebook):
    # A kernel of this very Python, whatever kernels are installed for others.
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    client = nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(NOTEBOOK.parent)}})
    client.create_kernel_manager()
    client.km.kernel_spec.argv = command
    client.execute()
    by_code = {cell.source.splitlines()[0]: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    texts = {start: "".join(output.get("text", "") for output in outputs) for start, outputs in by_code.items()}
    check(texts, [str(output.get("data", {})) for outputs in by_code.values() for output in outputs])
