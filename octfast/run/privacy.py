"""Takes the folders of the machine out of sentences, so that what is passed on does not tell where things lay."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from octfast.errors import OctfastError
from octfast.run.folder import Run

# A path from the root of a disk, but for its last part. Not the slash in "train/valid" or in an address.
_ABOVE = re.compile(r"(?<![\w.:/\\~])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'\",;:()]+[/\\])+")


def without_places(words: str, known: Iterable[str | Path] = ()) -> str:
    """A sentence with files by their names alone.

    Parameters
    ----------
    known : folders to be left out as a whole, whatever their names hold; a file stays with its place below them.
    """
    for folder in known:
        for end in ("/", "\\"):
            words = words.replace(f"{folder}{end}", "")
    return _ABOVE.sub("", words)


def within(run: Run, error: OctfastError) -> str:
    """What an error says, with the files of a run by their place in it: it may be read elsewhere."""
    return without_places(error.message, [run.path, run.root])


def named(path: str | Path) -> str:
    """A path as it was given if it says nothing of the machine, else its last part."""
    text = str(path)
    plain = text.replace("\\", "/")
    if plain.startswith(("/", "~", "..")) or re.match(r"[A-Za-z]:", plain):
        return plain.rstrip("/").rsplit("/", 1)[-1] or text
    return text
