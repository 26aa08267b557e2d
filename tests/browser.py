"""Pages served by the command in a process of its own, and the browser that tests look at them with."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

CHROMIUM = os.environ.get("OCTFAST_CHROMIUM") or next(
    (c for c in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if c), None
)


def shoot(page, name: str) -> None:
    """A picture of the page, where OCTFAST_SCREENSHOTS names a folder for them."""
    if shots := os.environ.get("OCTFAST_SCREENSHOTS"):
        Path(shots).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(shots) / f"{name}.png"), full_page=True)


def outside_of_landmarks(page) -> list[str]:
    """The parts of a page that a screen reader does not find by its landmarks (axe's rule `region`)."""
    return page.evaluate(
        "() => [...document.body.children].filter(e => !e.matches('header, nav, main, aside, footer, script'))"
        ".map(e => e.outerHTML.slice(0, 80))"
    )


@contextmanager
def served(words: Sequence[str], log: Path, **popen) -> Iterator[str]:
    """The address of the page that `octfast WORDS` serves; it must end well on Ctrl-C, and say that it stopped."""
    with log.open("w") as f:
        running = subprocess.Popen([sys.executable, "-m", "octfast", *words], stdout=f, stderr=f, **popen)
    try:
        for _ in range(1800):
            said = [line for line in log.read_text().splitlines() if line.startswith("page: ")]
            if said or running.poll() is not None:
                break
            time.sleep(0.1)
        assert said, log.read_text()
        yield said[0].split()[1]
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == 0, log.read_text()
        assert "stopped" in log.read_text() and "Traceback" not in log.read_text()
    finally:
        running.kill()
