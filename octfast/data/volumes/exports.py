"""HEYEX's exports as XML: the file is read without its entities, and the pictures beside it that it names are found."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from octfast.data.scans import IMAGE_SUFFIXES
from octfast.data.volumes.kinds import EXPORT_SUFFIX, is_export
from octfast.errors import DataError

# With the outlines of layers, which are passed over, a volume of 200 B-scans has some 15 MB.
MAX_BYTES = 128 << 20
_MAX_ELEMENTS, _MAX_DEPTH, _MAX_TEXT = 1_000_000, 32, 4096
_DECLARED = re.compile(rb"^<\?xml[^>]{0,200}?encoding\s*=\s*[\"'](iso-8859-\d+|windows-125\d)[\"']", re.IGNORECASE)
_PASSED_OVER = frozenset({"Segmentation"})


def parse(path: Path, name: str, wanted: frozenset[str] = frozenset()) -> Element:
    """The tree of a HEYEX export without namespaces and outlines of layers.

    A document type, by which a file could have others read or grow without end, is refused. Letters that are not of the
    encoding that the file says are replaced.

    Parameters
    ----------
    name : of the file in messages.
    wanted : elements whose text is kept; none keeps all.

    Raises
    ------
    DataError : it is too large, no XML, cut short, has a document type, or is no HEYEX export.
    OSError : it cannot be read.
    """
    builder = TreeBuilder()
    depth = elements = 0
    skipping = text = 0

    def start(tag: str, _: dict[str, str]) -> None:
        nonlocal depth, elements, skipping, text
        depth, elements = depth + 1, elements + 1
        if depth > _MAX_DEPTH or elements > _MAX_ELEMENTS:
            raise DataError(f"{name} is nested too deeply or has too many elements", "the file is damaged")
        tag = tag.rpartition(":")[2]
        skipping += bool(skipping) or tag in _PASSED_OVER
        text = 0
        if not skipping:
            builder.start(tag, {})
            keeps = not wanted or tag in wanted
            parser.CharacterDataHandler = data if keeps else None

    def end(tag: str) -> None:
        nonlocal depth, skipping
        depth -= 1
        if not skipping:
            builder.end(tag.rpartition(":")[2])
        skipping = max(0, skipping - 1)
        parser.CharacterDataHandler = None

    def data(words: str) -> None:
        nonlocal text
        text += len(words)
        if not skipping and text <= _MAX_TEXT:
            builder.data(words)

    def refuse(*_: object) -> None:
        raise DataError(f"{name} has a document type, which no export of HEYEX has", "do not trust it; leave it out")

    size = path.stat().st_size
    if size > MAX_BYTES:
        raise DataError(f"{name} has {size >> 20:,} MB", f"an export may have {MAX_BYTES >> 20}, beside its pictures")
    raw = path.read_bytes()
    utf16 = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
    if not utf16:
        declared = _DECLARED.match(raw.removeprefix(b"\xef\xbb\xbf").lstrip())
        raw = raw.decode(declared[1].decode() if declared else "utf-8-sig", errors="replace").encode().lstrip()
    parser = expat.ParserCreate(None if utf16 else "utf-8")
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler = start, end
    try:
        parser.Parse(raw, True)
    except expat.ExpatError as e:
        raise DataError(f"{name} is cut short or damaged: {e}", "export it again from HEYEX") from None
    except (LookupError, ValueError):
        raise DataError(f"{name} is in an encoding that is not known", "export it again from HEYEX") from None
    root = builder.close()
    if root.tag != "HEDX":
        raise DataError(f"{name} is no export of HEYEX", "leave it out")
    return root


def file_of(url: str | None) -> str:
    """The name of a picture without the folders of the computer that exported it; "" where there is none.

    An export has whole paths, such as file:///C:\\data\\1.tif, and its pictures lie beside it all the same.
    """
    found = re.split(r"[\\/]", (url or "").strip())[-1]
    return "" if found in (".", "..") or "\0" in found else found


def named_in(path: Path) -> set[str] | None:
    """The names in small letters of all pictures that an export names; None where it cannot be read to its end."""
    try:
        root = parse(path, str(path), frozenset({"ExamURL"}))
    except (DataError, OSError):
        return None
    return {file_of(url.text).casefold() for url in root.iter("ExamURL")} - {""}


def taken_by_exports(files: Iterable[str | Path]) -> set[str]:
    """Those of some files that are pictures of HEYEX exports among them, and so no scans of their own.

    Of an export that cannot be read nobody knows which pictures are its own: those of its folder all count.
    """
    files = list(files)
    # Most folders hold none, and a path of each of a million files takes its time.
    if not any(str(file).lower().endswith(EXPORT_SUFFIX) for file in files):
        return set()
    folders: dict[Path, list[Path]] = {}
    for file in map(Path, files):
        folders.setdefault(file.parent, []).append(file)
    taken: set[str] = set()
    for own in folders.values():
        exports = [file for file in own if is_export(file)]
        if not exports:
            continue
        pictures = [file for file in own if file.suffix.lower() in IMAGE_SUFFIXES]
        for export in exports:
            names = named_in(export)
            taken |= {str(p) for p in pictures if names is None or p.name.casefold() in names}
    return taken


def export_in(folder: Path) -> Path | None:
    """The one HEYEX export that lies in a folder; None where there is none.

    Raises
    ------
    DataError : there are several.
    """
    try:
        found = sorted(p for p in folder.iterdir() if is_export(p))
    except OSError:
        return None
    if len(found) > 1:
        raise DataError(f"{folder} holds {len(found)} exports of HEYEX", f"name the one meant: {found[0]}")
    return found[0] if found else None


def holds_export(folder: Path) -> bool:
    """Whether an export of HEYEX lies in a folder."""
    try:
        return any(is_export(p) for p in folder.iterdir())
    except OSError:
        return False


def pictures_beside(path: Path) -> list[Path]:
    """The files of all pictures that an export names and that lie beside it, sorted by name."""
    names = named_in(path) or set()
    return sorted(p for p in path.parent.iterdir() if p.name.casefold() in names and p.is_file())
