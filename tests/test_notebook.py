"""docs/notebooks/photos.ipynb runs from start to end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "notebooks" / "photos.ipynb"
ROOT = str(NOTEBOOK.parents[2])


def test_code_cells_run_as_a_script(tmp_path):
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    (tmp_path / "photos.py").write_text(code, encoding="utf-8")
    environment = {**os.environ, "MPLBACKEND": "agg", "PYTHONPATH": ROOT, "TMPDIR": str(tmp_path)}
    command = [sys.executable, "photos.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    assert "best.pt" in done.stdout


def test_no_output_is_kept():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")]


@pytest.mark.slow
def test_notebook_runs_in_a_kernel(tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    for name, value in (("PYTHONPATH", ROOT), ("TMPDIR", str(tmp_path)), ("IPYTHONDIR", str(tmp_path / "ipython"))):
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    kinds = {kind for cell in notebook.cells for output in cell.get("outputs", []) for kind in output.get("data", {})}
    assert "image/png" in kinds
    assert not any(output.output_type == "error" for cell in notebook.cells for output in cell.get("outputs", []))
