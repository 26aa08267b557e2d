from __future__ import annotations

import logging

from octfast.notices import Note
from octfast.run.log import run_log

log = logging.getLogger("octfast")


def test_the_file_has_all_and_the_notes_are_the_warnings_with_their_kind(tmp_path):
    with run_log(tmp_path / "log.txt") as notes:
        log.info("epoch 1")
        for _ in range(2):  # as where a step is run again
            log.warning("%d scans are odd", 2)
        log.warning("remember this", extra={"kind": "reminder"})
    log.warning("after the run")
    assert notes == [Note("", "2 scans are odd"), Note("reminder", "remember this")]
    lines = (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == [
        "INFO epoch 1",
        *["WARNING 2 scans are odd"] * 2,
        "WARNING remember this",
    ]
