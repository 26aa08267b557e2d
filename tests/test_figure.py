"""Figures as notebooks show them."""

import subprocess
import sys

import pytest


def test_a_notebook_shows_a_figure_though_pyplot_was_never_imported():
    pytest.importorskip("IPython", reason="there is no notebook without IPython")
    program = """
import sys
from IPython.core.formatters import DisplayFormatter
import pandas as pd
from octfast.train.plots import plot_history
history = pd.DataFrame({"epoch": [1, 2], "train_loss": [1.0, 0.5], "valid_loss": [1.0, 0.6], "valid_accuracy": [1, 1]})
shown, _ = DisplayFormatter().format(plot_history(history))
assert shown["image/png"][:8] == b"\\x89PNG\\r\\n\\x1a\\n"
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_notebook_shows_a_plot_of_pyplot_once(tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="there is no notebook to run without nbclient")
    pytest.importorskip("ipykernel", reason="there is no notebook to run without ipykernel")
    import nbformat

    draw = "fig, ax = one_axes(pyplot_place(), (3, 3)); ax.plot([1, 2])"
    cells = [
        f"from octfast.figure import one_axes, pyplot_place\n{draw}\nfig",  # as the value of the cell
        f"{draw};",
        f"{draw}\nfrom matplotlib import pyplot as plt\nplt.savefig('saved.png')",
        "fig",  # later, when pyplot has given it away
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    # As a kernel has it, which conftest.py sets otherwise.
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MPLBACKEND")
        client.execute()
    for cell in notebook.cells:
        shown = [o for o in cell.outputs if "image/png" in o.get("data", {})]
        assert len(shown) == 1, cell.source
    assert (tmp_path / "saved.png").stat().st_size > 2000
