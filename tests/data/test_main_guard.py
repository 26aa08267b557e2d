from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

START = "import multiprocessing\nmultiprocessing.set_start_method({method!r})\n"
ASK = "from octfast.data.main_guard import unguarded_script\n"


def run(script: Path, text: str) -> subprocess.CompletedProcess:
    script.write_text(text)
    return subprocess.run([sys.executable, script.name], cwd=script.parent, capture_output=True, text=True, timeout=300)


@pytest.mark.skipif(sys.platform == "win32", reason="no fork there")
@pytest.mark.parametrize(
    ("method", "body", "again"),
    [
        ("spawn", "print(unguarded_script())", True),
        ("forkserver", "def main():\n    print(unguarded_script())\nmain()", True),
        ("spawn", "if True:\n    print(unguarded_script())\nif __name__ == '__main__':\n    pass", True),
        ("fork", "print(unguarded_script())", False),
        ("spawn", "if __name__ == '__main__':\n    print(unguarded_script())", False),
        ("spawn", "def main():\n    print(unguarded_script())\nif '__main__' == __name__ and 1:\n    main()", False),
    ],
)
def test_a_script_whose_main_part_is_not_guarded(tmp_path, method, body, again):
    ended = run(tmp_path / "my script.py", START.format(method=method) + ASK + body)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.strip().endswith("my script.py") == again


def test_dataloaders_of_a_script_without_a_guard_work(phantoms, tmp_path):
    """As under Windows and macOS, where its worker processes would run it again and die of that."""
    body = (
        "from octfast.data.loaders import oct_dataloaders\n"
        f"dls = oct_dataloaders({str(phantoms)!r}, size=32, bs=8, num_workers=2)\n"
        "print(tuple(dls.one_batch()[0].shape))"
    )
    ended = run(tmp_path / "train.py", START.format(method="spawn") + body)
    assert ended.returncode == 0 and ended.stdout.split("\n")[0] == "(8, 3, 32, 32)", ended.stderr
    assert "train.py would run again in every process that decodes" in ended.stderr
