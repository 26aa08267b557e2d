"""Tells whether worker processes would run the user's script again, as they do where nothing guards its main part."""

from __future__ import annotations

import ast
import multiprocessing
import sys
from types import FrameType


def unguarded_script() -> str:
    """The script that runs this outside of `if __name__ == "__main__":`, and would run again in workers; or "".

    Processes that are spawned, as on Windows and macOS, import the script of the main process. One that trains when it
    is imported would train in each of them, which Python ends with an error in every process.
    """
    method = multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    if method == "fork":
        return ""
    # Not in a worker that runs the script again, where the main module has another name.
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    frame = sys._getframe(1)
    while frame is not None and not _is_top(frame, script):
        frame = frame.f_back  # type: ignore[assignment]
    return "" if frame is None or script is None or _is_guarded(script, frame.f_lineno) else script


def _is_top(frame: FrameType, script: str | None) -> bool:
    code = frame.f_code
    return code.co_name == "<module>" and code.co_filename == script and frame.f_globals.get("__name__") == "__main__"


def _is_guarded(script: str, line: int) -> bool:
    try:
        with open(script, "rb") as f:  # noqa: PTH123
            tree = ast.parse(f.read())
    except (OSError, SyntaxError, ValueError):  # an executable with Python inside, which does without
        return True
    return any(
        isinstance(node, ast.If) and node.lineno <= line <= (node.end_lineno or line) and _asks_for_main(node.test)
        for node in tree.body
    )


def _asks_for_main(test: ast.expr) -> bool:
    names = {n.id for n in ast.walk(test) if isinstance(n, ast.Name)}
    values = {n.value for n in ast.walk(test) if isinstance(n, ast.Constant)}
    return "__name__" in names and "__main__" in values
