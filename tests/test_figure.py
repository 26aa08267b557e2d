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
