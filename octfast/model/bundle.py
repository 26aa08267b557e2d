"""The trained classifier on disk: model.safetensors and octfast.json, no pickle."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from octfast.errors import BundleError, OctfastError

FORMAT = "octfast-bundle"
VERSION = 1
MODEL_FILE = "model.safetensors"
INFO_FILE = "octfast.json"
_MAX_JSON = 4 << 20


@dataclass(frozen=True)
class BundleInfo:
    """What a bundle says of its model.

    Attributes
    ----------
    arch, head : names for `find_arch` and `body_and_head`.
    classes : in the order of their index.
    size : side of a scan, in pixels; `mean` and `std` of the three channels, for samples in 0..1.
    weights : where the body's weights came from (`WeightsReport.to_dict`).
    training : provenance: seed, epochs, counts, versions.
    synthetic : whether it was trained on phantoms, so that its answers mean nothing for people.
    temperature : divides the logits before the softmax.
    """

    arch: str
    head: str
    classes: tuple[str, ...]
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    synthetic: bool = False
    temperature: float = 1.0

    def __post_init__(self):
        problems = [
            (not (isinstance(self.arch, str) and isinstance(self.head, str)), "arch and head are not names"),
            (
                not (2 <= len(self.classes) <= 10_000 and all(isinstance(c, str) for c in self.classes)),
                "classes is not a list of two or more names",
            ),
            (len(set(map(str, self.classes))) != len(self.classes), "a class stands twice"),
            (not (isinstance(self.size, int) and 16 <= self.size <= 4096), "size is not between 16 and 4096"),
            (not all(_three_numbers(v) for v in (self.mean, self.std)), "mean and std are not three numbers each"),
            (not _positive([self.temperature, *self.std]), "temperature and std are not positive numbers"),
        ]
        for wrong, what in problems:
            if wrong:
                raise BundleError(f"octfast.json: {what}", "the file was changed or damaged; export the model again")


def save_bundle(folder: str | Path, model, info: BundleInfo) -> Path:
    """Write a model, a Sequential of body and head, and what is known of it; each file under its name only when whole.

    Returns
    -------
    The folder.
    """
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Copies, since safetensors refuses tensors that share memory and saves none that are strided otherwise.
    state = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    part = folder / f".{MODEL_FILE}.part"
    # One entry alone, as safetensors writes several in any order, and the same model should give the same bytes.
    save_file(state, part, metadata={"format": "pt"})
    part.replace(folder / MODEL_FILE)
    text = json.dumps({"format": FORMAT, "version": VERSION, **asdict(info)}, indent=2, ensure_ascii=False)
    part = folder / f".{INFO_FILE}.part"
    part.write_text(text + "\n", encoding="utf-8")
    part.replace(folder / INFO_FILE)
    return folder


def read_info(folder: str | Path) -> BundleInfo:
    """Read and check a bundle's octfast.json.

    Raises
    ------
    BundleError : missing, too large, no JSON, of a newer version, unknown keys, values that cannot be.
    """
    file = Path(folder) / INFO_FILE
    hint = "give the folder that holds model.safetensors and octfast.json"
    try:
        if file.stat().st_size > _MAX_JSON:
            raise BundleError(f"{file} is too large to be a bundle's", hint)
        raw = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"no trained model in {folder}: {INFO_FILE} is missing", hint) from None
    except (OSError, ValueError, RecursionError) as e:
        raise BundleError(f"cannot read {file}: {e}", hint) from None
    if not isinstance(raw, dict) or raw.pop("format", None) != FORMAT:
        raise BundleError(f"{file} is not a bundle's", hint)
    version = raw.pop("version", None)
    if not isinstance(version, int) or version > VERSION:
        raise BundleError(f"{file} has version {version!r}, newer than {VERSION}", "update octfast")
    known = set(BundleInfo.__dataclass_fields__)
    needed = {"arch", "head", "classes", "size", "mean", "std"}
    if set(raw) - known or needed - set(raw):
        strange = ", ".join(sorted(set(raw) - known | needed - set(raw)))
        raise BundleError(f"{file}: unknown or missing: {strange}", "the file was changed; export the model again")
    for key in ("classes", "mean", "std"):
        if not isinstance(raw[key], list):
            raise BundleError(f"{file}: {key} is not a list", "the file was changed; export the model again")
        raw[key] = tuple(raw[key])
    return BundleInfo(**raw)


def load_bundle(folder: str | Path):
    """Build the model that a bundle names and load its tensors; nothing in the bundle is executed.

    Returns
    -------
    (a Sequential of body and head in eval mode, on the CPU; its BundleInfo).

    Raises
    ------
    BundleError : a file is missing or damaged, or the tensors are not those of the architecture.
    """
    from safetensors import SafetensorError, safe_open
    from torch import nn

    from octfast.model.arch import find_arch, make_network
    from octfast.model.heads import body_and_head

    info = read_info(folder)
    file = Path(folder) / MODEL_FILE
    hint = "export or train the model again"
    try:
        arch = find_arch(info.arch)
        model = nn.Sequential(*body_and_head(make_network(arch, info.size), arch, info.head, len(info.classes)))
    except OctfastError as e:
        raise BundleError(f"{folder}: {e.message}", e.hint) from None
    wanted = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    try:
        with safe_open(file, framework="pt") as tensors:
            found = {k: tuple(tensors.get_slice(k).get_shape()) for k in tensors.keys()}  # noqa: SIM118
            if found != wanted:
                off = sorted(k for k in found.keys() | wanted.keys() if found.get(k) != wanted.get(k))
                raise BundleError(f"{file} does not hold {info.arch} with the head {info.head}: {off[0]} differs", hint)
            model.load_state_dict({k: tensors.get_tensor(k) for k in wanted})
    except FileNotFoundError:
        raise BundleError(f"no trained model in {folder}: {MODEL_FILE} is missing", hint) from None
    except (OSError, SafetensorError, RuntimeError) as e:
        raise BundleError(f"cannot read {file}: {e}", hint) from None
    return model.eval(), info


def _three_numbers(values: object) -> bool:
    return (
        isinstance(values, tuple | list)
        and len(values) == 3
        and all(isinstance(v, int | float) and abs(v) < 1e6 for v in values)
    )


def _positive(values: list) -> bool:
    return all(isinstance(v, int | float) and 0 < v < 1e6 for v in values)
