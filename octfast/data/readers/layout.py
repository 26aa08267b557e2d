"""Finds out which folders of a tree are splits and which are classes; where that cannot be known, it asks."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from octfast.data.readers.names import (
    KNOWN_CLASSES,
    class_key,
    clean,
    is_patient_name,
    names_a_split,
    numbered_stems,
    patient_in_name,
    role_of,
    split_of,
    splits_of,
)
from octfast.data.readers.walk import Folder, LeftOut, is_scan, walk
from octfast.data.volumes.exports import taken_by_exports
from octfast.errors import DataError

log = logging.getLogger("octfast")

_ASK = "give the one meant, or say it: --label-from folder takes the folder that a scan lies in, folder:2 the one above"
_OWN = "of no folder of a class"
# Files of a second copy that are compared byte by byte, spread over all; of the others name and size.
_COMPARED = 200


@dataclass(frozen=True)
class Place:
    """A folder of scans of one class and split.

    patients : whether the folder itself is a patient, as AMD1 is one of AMD.
    extra : what folders above say: `eye`, `device`.
    """

    folder: Folder
    label: str
    split: str
    patient: str = ""
    extra: dict[str, str] = field(default_factory=dict)


class Layout:
    """A folder of scans, looked through once.

    root : the folder that holds the splits or classes: the given one, or the only one in it, and so on down.
    left_out : what is not read, and why.
    notes : what was made out of the folders, for a person to know.
    """

    def __init__(self, data: str | Path) -> None:
        self.left_out = LeftOut()
        self.notes: list[str] = []
        self._given = walk(data, self.left_out)
        self.linked = self._given.linked
        self._own: dict[str, list[str]] = {}
        self._others: dict[str, int] = {}
        self._deep: dict[str, int] = {}
        exported = 0
        for folder in reversed(list(self._given.all())):
            own = [f for f in folder.files if is_scan(f)]
            if taken := taken_by_exports(own):
                exported += len(taken)
                own = [f for f in own if f not in taken]
            self._others[folder.path] = len(folder.files) - len(own) - len(taken)
            self._own[folder.path] = own
            self._deep[folder.path] = len(own) + sum(self._deep[f.path] for f in folder.folders)
        if exported:
            log.info("%s pictures are those of exports by HEYEX (.xml), and read with these", f"{exported:,}")
        self._top = self._unwrapped(self._given)
        self.root = Path(self._top.path)
        self._found: list[Place] | None = None

    def places(self) -> list[Place]:
        """The folders of classes, each with its class and split; what lies beside them goes to `left_out`.

        Raises
        ------
        DataError : the folders can be understood in more than one way, or hold no classes.
        """
        if self._found is not None:
            return self._found
        found = self._read(self._top, {})
        odd = sorted({p.label for p in found if names_a_split(p.label)})
        if odd:
            raise DataError(
                f"the folder {odd[0]} in {self.root} would be a class, and looks like a split",
                "name the splits train, val and test, or say what the classes are: --label-from folder",
            )
        self._found = found
        return found

    def pictures(self, folder: Folder | None = None) -> list[str]:
        """All pictures below a folder, or below the root, sorted."""
        return sorted(p for f in (folder or self._top).all() for p in self._own[f.path])

    def class_pictures(self, place: Place) -> list[str]:
        """The pictures of a place, without those in folders of masks beside others."""
        masks = [
            f for f in place.folder.all() if f is not place.folder and role_of(f.name) == "masks" and self._deep[f.path]
        ]
        inside = {p for mask in masks for p in self.pictures(mask)}
        pictures = self.pictures(place.folder)
        if not inside or len(inside) == len(pictures):
            return pictures
        self._leave(f"in folders of masks ({masks[0].name})", sorted(inside))
        return [p for p in pictures if p not in inside]

    def others(self) -> int:
        """How many files in the folders of classes are no pictures."""
        return sum(self._others[f.path] for place in self._found or [] for f in place.folder.all())

    def has_loose(self) -> bool:
        """Whether pictures lie directly in the root or in a folder of a split."""
        return any(self._own[f.path] for f in (self._top, *(f for f in self._top.folders if split_of(f.name))))

    def _kids(self, folder: Folder) -> list[Folder]:
        return [f for f in folder.folders if self._deep[f.path]]

    def _unwrapped(self, folder: Folder) -> Folder:
        # Kaggle's archive unpacks to a lone folder "OCT2017 " that people point above.
        while len(kids := self._kids(folder)) == 1 and not self._own[folder.path]:
            if split_of(kids[0].name) or self._own[kids[0].path]:
                break
            folder = kids[0]
        return folder

    def _leave(self, where: str, paths: list[str]) -> None:
        self.left_out.add(f"pictures {where}", *paths)

    def _read(self, folder: Folder, extra: dict[str, str]) -> list[Place]:
        """The places below a folder that holds splits, or classes, or the one folder that does."""
        folder = self._unwrapped(folder)
        kids = self._kids(folder)
        splits = splits_of([f.name for f in kids])
        if not splits:
            return self._classes(folder, "train", extra)
        self._leave(_OWN, self._own[folder.path])
        stray = [f for f in kids if f.name not in splits]
        if stray:
            names = ", ".join(f.name for f in stray)
            self._leave(f"in folders beside the splits ({names})", [p for f in stray for p in self.pictures(f)])
        return [
            place for f in kids if f.name in splits for place in self._classes(f, splits[f.name], extra, inside=True)
        ]

    def _classes(self, folder: Folder, split: str, extra: dict[str, str], inside: bool = False) -> list[Place]:
        kids = self._without_masks(folder)
        lone = kids[0] if len(kids) == 1 and not self._own[folder.path] else None
        if inside and lone and (split_of(lone.name) == split or self._holds_classes(lone)):
            return self._classes(lone, split, extra, inside)
        roles = {role_of(f.name) for f in kids}
        if kids and roles <= {"eye", "device"}:
            return self._beside(folder, kids, split, extra, inside)
        if len(kids) == 1 and roles == {"pictures"}:
            self._leave(_OWN, self._own[folder.path])
            return self._classes(kids[0], split, extra, True) if inside else self._read(kids[0], extra)
        with_splits = [f for f in kids if self._holds_splits(f)]
        if with_splits:
            return self._with_splits(folder, kids, with_splits, extra, inside)
        several = self._containers(kids)
        if several:
            kept = self._without_copies(several)
            if len(kept) < len(several):
                gone = [f for f in several if f not in kept]
                rest = [f for f in kids if f not in gone]
                return self._read(rest[0], extra) if len(rest) == 1 else self._of(folder, rest, split, extra)
            shown = ", ".join(
                f"{f.path} ({', '.join(k.name for k in self._kids(self._unwrapped(f))[:4])})" for f in kept[:4]
            )
            raise DataError(
                f"folders of {folder.path} hold folders of their own, so these or those are classes: {shown}", _ASK
            )
        return self._of(folder, kids, split, extra)

    def _of(self, folder: Folder, kids: list[Folder], split: str, extra: dict[str, str]) -> list[Place]:
        """The places where each of `kids` is a class, or, by their names, a patient."""
        names = [f.name for f in kids]
        if kids and all(map(is_patient_name, names)):
            shown = ", ".join(names[:4])
            if folder is self._given or split_of(folder.name) or role_of(folder.name):
                raise DataError(
                    f"the folders of {folder.path} look like patients, not like classes: {shown}",
                    "give a table of scans with a column of labels, or say where the label stands: --label-from "
                    "PATTERN; --label-from folder, if these are classes",
                )
            self.notes.append(
                f"the folders {shown} are taken for patients of the class {folder.name}; --label-from folder reads "
                "them as classes"
            )
            return [Place(folder, folder.name, split, extra=extra)]
        self._check_classes(folder, kids)
        self._leave(_OWN, self._own[folder.path])
        stems = numbered_stems(names)
        if stems:
            shown = ", ".join(names[:4])
            self.notes.append(
                f"the folders {shown} ... of {folder.path} are taken for patients of the classes "
                f"{', '.join(sorted(set(stems.values())))}; with --label-from they can be read otherwise"
            )
        elif any(len(self._kids(f)) > 1 and not self._are_parts(f) for f in kids):
            first = next(f for f in kids if len(self._kids(f)) > 1 and not self._are_parts(f))
            inner = ", ".join(f.name for f in self._kids(first)[:4])
            self.notes.append(
                f"the folders in {first.path} ({inner}) are taken for parts of one class, {first.name}; "
                "--label-from folder reads them as classes"
            )
        return [Place(f, stems.get(f.name, f.name), split, f.name if stems else "", extra) for f in kids]

    def _without_masks(self, folder: Folder) -> list[Folder]:
        kids = self._kids(folder)
        masks = [f for f in kids if role_of(f.name) == "masks"]
        if not masks or len(masks) == len(kids):
            return kids
        self._leave(f"in folders of masks ({masks[0].name})", [p for f in masks for p in self.pictures(f)])
        return [f for f in kids if f not in masks]

    def _beside(
        self, folder: Folder, kids: list[Folder], split: str, extra: dict[str, str], inside: bool
    ) -> list[Place]:
        """Folders of eyes or devices, each with folders of classes."""
        names = ", ".join(f.name for f in kids)
        if not all(self._kids(f) for f in kids):
            raise DataError(
                f"the folders {names} of {folder.path} are eyes or devices, not classes",
                "give a table of scans with a column of labels, or say what the classes are: --label-from folder",
            )
        self._leave(_OWN, self._own[folder.path])
        self.notes.append(
            f"the folders {names} of {folder.path} are no classes: the class folders in each are read together"
        )
        found = []
        for f in kids:
            more = {**extra, role_of(f.name): clean(f.name)}
            found += self._classes(f, split, more, True) if inside else self._read(f, more)
        return found

    def _with_splits(
        self, folder: Folder, kids: list[Folder], holders: list[Folder], extra: dict[str, str], inside: bool
    ) -> list[Place]:
        """Folders that hold splits: classes, cut into splits each; or sets of which one is meant."""
        if not inside and len(holders) == len(kids) and all(map(self._is_class_of_splits, kids)):
            self._check_classes(folder, kids)
            self._leave(_OWN, self._own[folder.path])
            found = []
            for f in kids:
                inner = self._unwrapped(f)
                splits = splits_of([k.name for k in self._kids(inner)])
                stray = [k for k in self._kids(inner) if k.name not in splits]
                self._leave(
                    "in folders beside the splits",
                    [*self._own[inner.path], *(p for k in stray for p in self.pictures(k))],
                )
                found += [Place(k, f.name, splits[k.name], extra=extra) for k in self._kids(inner) if k.name in splits]
            return found
        kept = self._without_copies(holders)
        if len(kept) > 1 or inside:
            shown = ", ".join(f.path for f in kept[:6])
            raise DataError(
                f"{folder.path} holds several data sets, or splits in splits: {shown}", "give the one meant"
            )
        rest = [f for f in kids if f not in holders]
        self._leave(_OWN, self._own[folder.path])
        if rest:
            names = ", ".join(f.name for f in rest)
            self._leave(f"in folders beside the data set ({names})", [p for f in rest for p in self.pictures(f)])
        self.notes.append(f"the data set is read in {self._unwrapped(kept[0]).path}")
        return self._read(kept[0], extra)

    def _holds_splits(self, folder: Folder) -> bool:
        inner = self._unwrapped(folder)
        kids = self._kids(inner)
        return bool(splits_of([f.name for f in kids])) or any(self._holds_splits(f) for f in kids)

    def _is_class_of_splits(self, folder: Folder) -> bool:
        kids = self._kids(self._unwrapped(folder))
        splits = splits_of([f.name for f in kids])
        return bool(splits) and not any(self._inner(f) for f in kids if f.name in splits)

    def _inner(self, folder: Folder) -> set[str]:
        """The keys of folders in a folder that might be classes; none of patients, eyes, masks and the like."""
        kids = self._kids(self._unwrapped(folder))
        found = {class_key(f.name) for f in kids if not role_of(f.name)}
        return set() if all(is_patient_name(f.name) or f.name.isdecimal() for f in kids) or len(kids) < 2 else found

    def _are_parts(self, folder: Folder) -> bool:
        return not self._inner(folder)

    def _holds_classes(self, folder: Folder) -> bool:
        return len(self._inner(folder)) > 1 and not self._own[folder.path]

    def _containers(self, kids: list[Folder]) -> list[Folder]:
        """Folders among would-be classes that hold folders of classes themselves, as far as names tell."""
        inner = {f.path: self._inner(f) for f in kids}
        often = Counter(key for keys in inner.values() for key in keys)
        names = {class_key(f.name) for f in kids}
        found = []
        for f in kids:
            own = class_key(f.name)
            keys = inner[f.path]
            known = len({k.replace(" ", "_") for k in keys} & KNOWN_CLASSES) > 1 and own not in KNOWN_CLASSES
            again = any(often[key] > 1 for key in keys) and not self._named_after(f)
            if known or again or keys & (names - {own}):
                found.append(f)
        return found

    def _named_after(self, folder: Folder) -> bool:
        """Whether the files in a folder bear its name as their class, so that it is one whatever it holds."""
        pictures = self.pictures(folder)
        label = {class_key(folder.name)}
        return sum(bool(patient_in_name(Path(p).stem, label)) for p in pictures) > 0.9 * len(pictures)

    def _check_classes(self, folder: Folder, kids: list[Folder]) -> None:
        """Refuse what cannot be classes by their names, and loose pictures of a class beside them."""
        odd = next((f for f in kids if role_of(f.name)), None)
        if odd:
            raise DataError(
                f"the folder {odd.name} of {folder.path} does not look like a class by its name",
                "give the folder of the classes; or, if it is a class all the same: --label-from folder",
            )
        if kids:
            self._check_loose(folder, kids, self._own[folder.path])

    def _check_loose(self, folder: Folder, kids: list[Folder], loose: list[str]) -> None:
        """Refuse loose pictures whose names say a class that has no folder: it would be gone without a word."""
        labels = {class_key(f.name) for f in kids}
        for path in loose:
            label = Path(path).stem.split("-")[0]
            key = class_key(label)
            if key not in labels and patient_in_name(Path(path).stem, {key}) and not any(map(str.isdigit, key)):
                raise DataError(
                    f"pictures of {label} lie in no folder of a class: {len(loose)} in {folder.path}, the first {path}",
                    f"move them into a folder {label}, or out of the data",
                )

    def _without_copies(self, folders: list[Folder]) -> list[Folder]:
        """The folders but for identical copies of one before; what lies in these is left out."""
        kept: list[Folder] = []
        for f in sorted(folders, key=lambda f: (len(Path(self._unwrapped(f).path).parts), f.path)):
            same = next((k for k in kept if self._identical(k, f)), None)
            if same is None:
                kept.append(f)
            else:
                self._leave(f"in {f.path}, a second copy of {same.path}", self.pictures(f))
        return sorted(kept, key=lambda f: f.path)

    def _identical(self, one: Folder, other: Folder) -> bool:
        a, b = (dict(self._sized(f)) for f in (one, other))
        if {k: size for k, (_, size) in a.items()} != {k: size for k, (_, size) in b.items()}:
            return False
        names = sorted(a)
        return all(_same_bytes(a[n][0], b[n][0]) for n in names[:: max(1, len(names) // _COMPARED)])

    def _sized(self, folder: Folder) -> Iterator[tuple[str, tuple[str, int]]]:
        inner = self._unwrapped(folder).path
        for path in self.pictures(folder):
            yield os.path.relpath(path, inner), (path, Path(path).stat().st_size)


def _same_bytes(one: str, other: str) -> bool:
    return Path(one).read_bytes() == Path(other).read_bytes()
