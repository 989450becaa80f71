from __future__ import annotations

import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
sys.path.insert(0, str(DOCS / "_ext"))

nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytestmark = [
    pytest.mark.slow,
    # Of the event loop and the sockets between the kernel and its client.
    pytest.mark.filterwarnings("ignore"),
]


def run(notebook, folder):
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": folder}}
    )
    client.execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell):
    """Return the kinds of what a cell shows."""
    return [kind for output in cell.outputs for kind in output.get("data", {})]


@pytest.fixture
def notebooks():
    return pytest.importorskip("notebooks")


@pytest.fixture(autouse=True)
def room(monkeypatch):
    """Let the kernel find the working tree, and draw as notebooks do."""
    monkeypatch.setenv("PYTHONPATH", str(DOCS.parent))
    monkeypatch.delenv("MPLBACKEND")


def test_the_tutorial_runs_as_a_notebook(notebooks, tmp_path):
    cells = run(notebooks.notebook_of(DOCS / "tutorial.md"), tmp_path)
    assert len(cells) == 12


def test_a_notebook_shows_points_progress_and_every_figure_once(notebooks, tmp_path):
    """The tutorial up to its figure, with what one looks at in a notebook."""
    notebook = notebooks.notebook_of(DOCS / "tutorial.md")
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    (figure,) = [k for k, cell in enumerate(cells) if "dln.plot" in cell.source]
    notebook.cells = cells[: figure + 1]
    looks = ["layers", "p", "path", "dln.gradient_flow(loss, start, t_end=0.1, progress=True);"]
    notebook.cells += [notebooks.new_code_cell(look) for look in looks]
    *_, drawn, layers, point, path, flow = run(notebook, tmp_path)
    assert kinds(drawn).count("image/png") == 1
    for shown in (layers, point):
        assert "text/html" in kinds(shown)
    assert flow.outputs, "the progress of a flow must be shown"
    assert path.outputs
