"""Bundles that a stranger may have made: the ways to spoil one, each drawn from a seed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from octfast.model.bundle.info import INFO_FILE, MODEL_FILE

ABSURD = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2,
        1.5,
        1e308,
        -1e308,
        10**18,
        10**400,
        "",
        "x",
        "../../etc/passwd",
        "\x00",
        "\x1b[2J",
    ),
    *("x" * 20_000, [], {}, [[]], [{}], ["a"], ["a", "a"], [1, 2, 3], [True] * 3, [0, 0, 0], {"a": 1}, [None] * 3),
    *(["é", "\ud800"], ["a\nb", "c"], ["a", ""], list("abc"), ["../..", "/etc"], "file:///etc/passwd"),
)
NAMES = (
    *(
        "hf-hub:timm/resnet50.a1_in1k",
        "hf_hub:evil/model",
        "local-dir:/tmp",
        "https://example.org/m",
        "file:///etc/passwd",
    ),
    *("../../model", "/etc/passwd", "os.system", "__import__('os')", "test_resnet.", ".", "..", "", " ", "vgg16\x00"),
    *("test_resnet.r160_in1k", "test_resnet.nothing", "RESNET18", "resnet18\n", "timm/resnet18", "vit_*", "*", "[a-z]"),
    *("vit_giant_patch14_dinov2", "eva_giant_patch14_560", "convnext_xxlarge", "resnet152", "vgg19_bn", "densenet201"),
    *("swin_large_patch4_window12_384", "tf_efficientnetv2_xl", "vit_huge_patch14_224", "squeezenet1_1", "test_vit"),
)


class Payload:
    """Pickled, it is a call that leaves a file behind; nobody may unpickle it."""

    def __init__(self, canary: Path):
        self.canary = str(canary)

    def __reduce__(self):
        return os.mkdir, (self.canary,)


def info_of(folder: Path) -> dict:
    return json.loads((folder / INFO_FILE).read_text(encoding="utf-8"))


def write_info(folder: Path, content: object) -> None:
    (folder / INFO_FILE).write_text(json.dumps(content), encoding="utf-8")


def header_of(folder: Path) -> tuple[dict, bytes]:
    data = (folder / MODEL_FILE).read_bytes()
    n = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + n]), data[8 + n :]


def write_header(folder: Path, header: object, rest: bytes, length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    n = len(text) if length is None else length
    (folder / MODEL_FILE).write_bytes(n.to_bytes(8, "little") + text + rest)


def whole(draw: Random, folder: Path, canary: Path) -> None:
    """Nothing that matters: it loads."""
    about = info_of(folder)
    items = list(about.items())
    draw.shuffle(items)
    write_info(folder, dict(items))


def info_values(draw: Random, folder: Path, canary: Path) -> None:
    about = info_of(folder)
    for key in draw.sample(sorted(about), draw.randint(1, 3)):
        about[key] = draw.choice(ABSURD)
    write_info(folder, about)


def info_inner_values(draw: Random, folder: Path, canary: Path) -> None:
    about = info_of(folder)
    key = draw.choice(["mean", "std", "classes", "calibration", "weights", "training", "base"])
    if isinstance(about.get(key), list):
        about[key][draw.randrange(len(about[key]))] = draw.choice(ABSURD)
    else:
        inner = draw.choice(["operating", "conformal", "sha256", "source", "path", "urgent", "threshold"])
        about[key] = {inner: draw.choice([*ABSURD, {"urgent": draw.choice(ABSURD), "threshold": draw.choice(ABSURD)}])}
    write_info(folder, about)


def info_keys(draw: Random, folder: Path, canary: Path) -> None:
    about = info_of(folder)
    how = draw.choice(["gone", "more", "twice", "renamed"])
    key = draw.choice(sorted(about))
    if how == "gone":
        del about[key]
    elif how == "more":
        about[draw.choice(["__class__", "__init__", "x" * 300, "\x00", "self", "Arch", "pickle", "é"])] = 1
    elif how == "renamed":
        about[key.upper()] = about.pop(key)
    if how != "twice":
        write_info(folder, about)
        return
    text = json.dumps(about)
    (folder / INFO_FILE).write_text("{" + f"{json.dumps(key)}: {json.dumps(about[key])}, " + text[1:])


def info_bytes(draw: Random, folder: Path, canary: Path) -> None:
    data = bytearray((folder / INFO_FILE).read_bytes())
    for _ in range(draw.randint(1, 4)):
        data[draw.randrange(len(data))] = draw.randrange(256)
    (folder / INFO_FILE).write_bytes(data)


def info_cut(draw: Random, folder: Path, canary: Path) -> None:
    data = (folder / INFO_FILE).read_bytes()
    (folder / INFO_FILE).write_bytes(data[: draw.randrange(len(data) - 2)])


def info_texts(draw: Random, folder: Path, canary: Path) -> None:
    text = (folder / INFO_FILE).read_text(encoding="utf-8")
    n = draw.choice([20, 900, 100_000])
    spoilt = draw.choice(
        [
            lambda: b"\xef\xbb\xbf" + text.encode(),
            lambda: text.encode("utf-16"),
            lambda: b"\xff" + text.encode(),
            lambda: text.replace("0.4", draw.choice(["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000])).encode(),
            lambda: (text.rstrip().rstrip("}") + ', "training": ' + "[" * n + "]" * n + "}").encode(),
            lambda: text.replace(
                '"training": {', '"training": {"deep": ' + '{"a":' * n + "1" + "}" * n + ", "
            ).encode(),
            lambda: b"[" * n,
            lambda: text.replace("CNV", draw.choice(["\\ud800", "\\u0000", "\\u001b[2J", "\\n", "\\u0085"])).encode(),
            lambda: json.dumps([json.loads(text)]).encode(),
            lambda: b" " * (5 << 20) + text.encode(),
            lambda: text.encode() * 2,
            lambda: draw.choice([b"", b"null", b"{}", b"[]", b'"x"', b"true", b"\x00" * 64]),
            lambda: pickle.dumps(Payload(canary)),
        ]
    )
    (folder / INFO_FILE).write_bytes(spoilt())


def info_names(draw: Random, folder: Path, canary: Path) -> None:
    about = info_of(folder)
    about["arch"] = draw.choice(NAMES)
    if draw.random() < 0.3:
        about["head"] = draw.choice(["octfast", "fastai", "article", "../x", "__import__", ""])
    if draw.random() < 0.3:
        about["size"] = draw.choice([16, 33, 2048, 4096])
    write_info(folder, about)


def info_classes(draw: Random, folder: Path, canary: Path) -> None:
    about = info_of(folder)
    n = draw.choice([2, 4, 999, 10_000, 10_001, 100_000])
    about["calibration"] = {}
    about["classes"] = [f"{draw.choice(['c', '../', '=cmd|', '<script>', '$'])}{i}" for i in range(n)]
    write_info(folder, about)


def info_versions(draw: Random, folder: Path, canary: Path) -> None:
    about = info_of(folder)
    about["version"] = draw.choice([0, -1, 1, 3, 4, 10**9, "2", 2.0, True, None, [2], 10**30])
    write_info(folder, about)


def tensors_length(draw: Random, folder: Path, canary: Path) -> None:
    header, rest = header_of(folder)
    right = len(json.dumps(header).encode())
    wrong = [0, 1, right - 1, right + 1, right + len(rest), right + len(rest) + 1, 2**31, 2**32, 2**63 - 1, 2**64 - 1]
    write_header(folder, header, rest, draw.choice([*wrong, draw.randrange(2**64)]))


def tensors_header_bytes(draw: Random, folder: Path, canary: Path) -> None:
    header, rest = header_of(folder)
    text = bytearray(json.dumps(header).encode())
    for _ in range(draw.randint(1, 3)):
        text[draw.randrange(len(text))] = draw.randrange(256)
    write_header(folder, bytes(text), rest)


def tensors_entries(draw: Random, folder: Path, canary: Path) -> None:
    header, rest = header_of(folder)
    name = draw.choice([k for k in header if k != "__metadata__"])
    entry = header[name]
    begin, end = entry["data_offsets"]
    key = draw.choice(["dtype", "shape", "data_offsets", "entry"])
    if key == "dtype":
        entry[key] = draw.choice(
            ["F16", "BF16", "F64", "I64", "U8", "BOOL", "C64", "F8_E4M3", "f32", "", None, 4, ["F32"]]
        )
    elif key == "shape":
        sides = [[], [0], [-1], [2**62, 4], [2**64], [1] * 100, [1.0], ["1"], None, 7, [True], entry["shape"][::-1]]
        entry[key] = draw.choice([*sides, [*entry["shape"], 1], [2**31, 2**31]])
    elif key == "data_offsets":
        places = [
            [0, end - begin],
            [begin + 1, end + 1],
            [end, begin],
            [-4, end],
            [begin, 2**63],
            [begin, 10**19],
            [begin],
        ]
        entry[key] = draw.choice(
            [*places, [begin, end + 4], [float(begin), end], None, {}, ["0", "4"], [begin, end, end]]
        )
    else:
        header[name] = draw.choice([None, 1, "x", [], {}, {"dtype": "F32"}, {**entry, "code": "print(1)"}])
    write_header(folder, header, rest)


def tensors_names(draw: Random, folder: Path, canary: Path) -> None:
    header, rest = header_of(folder)
    name = draw.choice([k for k in header if k != "__metadata__"])
    how = draw.choice(["gone", "renamed", "more", "twice", "metadata", "swapped"])
    if how == "gone":
        del header[name]
    elif how == "renamed":
        header[draw.choice(["../../x", "", "a" * 9000, "\x00", "0.0.__class__", name.upper(), "\ud800"])] = header.pop(
            name
        )
    elif how == "more":
        header["1.99.weight"] = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    elif how == "swapped":
        other = draw.choice([k for k in header if k != "__metadata__"])
        header[name], header[other] = header[other], header[name]
    elif how == "metadata":
        header["__metadata__"] = draw.choice([None, [], {"a": 1}, {"a": {"b": {}}}, "x", {"a": "x" * 20_000}])
    if how != "twice":
        write_header(folder, header, rest)
        return
    text = json.dumps(header)
    write_header(folder, ("{" + f"{json.dumps(name)}: {json.dumps(header[name])}, " + text[1:]).encode(), rest)


def tensors_cut(draw: Random, folder: Path, canary: Path) -> None:
    data = (folder / MODEL_FILE).read_bytes()
    size = draw.choice([0, 1, 7, 8, 9, draw.randrange(len(data)), len(data) - 1, len(data) + draw.randrange(1, 4096)])
    (folder / MODEL_FILE).write_bytes((data + b"\x00" * 4096)[:size])


def tensors_numbers(draw: Random, folder: Path, canary: Path) -> None:
    """Other numbers, NaN and infinity among them: it loads, or says that it is damaged."""
    header, rest = header_of(folder)
    data = bytearray(rest)
    for _ in range(draw.randint(1, 8)):
        at = draw.randrange(len(data) // 4) * 4
        data[at : at + 4] = draw.choice(
            [b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\xff\xff\x7f\x7f", draw.randbytes(4)]
        )
    write_header(folder, header, bytes(data))


def pickles(draw: Random, folder: Path, canary: Path) -> None:
    """A pickle, which leaves a folder behind where it is opened, under a name that promises none."""
    import torch

    file = folder / draw.choice([MODEL_FILE, MODEL_FILE, INFO_FILE])
    if draw.random() < 0.5:
        file.write_bytes(pickle.dumps({"state": Payload(canary)}, protocol=draw.randrange(6)))
    else:
        torch.save({"state": Payload(canary)}, file, _use_new_zipfile_serialization=draw.random() < 0.5)


def other_files(draw: Random, folder: Path, canary: Path) -> None:
    held = [
        b"",
        b"\x00" * 8,
        b"\x00" * 4096,
        b"<!DOCTYPE html>",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"GIF89a",
    ]
    file = folder / draw.choice([MODEL_FILE, INFO_FILE])
    if draw.random() < 0.3:
        shutil.copyfile(folder / (INFO_FILE if file.name == MODEL_FILE else MODEL_FILE), folder / "other")
        (folder / "other").replace(file)
    else:
        file.write_bytes(draw.choice([*held, draw.randbytes(draw.randrange(2000))]))


def links(draw: Random, folder: Path, canary: Path) -> None:
    """A link in the place of a file: out of the folder, to itself, to nothing, to what never ends."""
    outside = folder.parent / "outside"
    outside.mkdir(exist_ok=True)
    for name in draw.choice([[MODEL_FILE], [INFO_FILE], [MODEL_FILE, INFO_FILE]]):
        kept = outside / name
        shutil.move(folder / name, kept)
        targets = [
            kept,
            Path("..") / "outside" / name,
            name,
            "/nowhere/at/all",
            "/dev/zero",
            "/etc/passwd",
            "/proc/self/mem",
        ]
        (folder / name).symlink_to(draw.choice([kept, *targets]))


def no_files(draw: Random, folder: Path, canary: Path) -> None:
    """A folder, a pipe or nothing in the place of a file."""
    file = folder / draw.choice([MODEL_FILE, INFO_FILE])
    file.unlink()
    how = draw.choice(["folder", "pipe", "nothing"])
    if how == "folder":
        file.mkdir()
        (file / draw.choice([MODEL_FILE, INFO_FILE])).write_bytes(b"x")
    elif how == "pipe":
        os.mkfifo(file)


def slim(draw: Random, folder: Path, canary: Path) -> None:
    """What says that it is slim: its stock weights are not on this machine, or are not named as they should be."""
    about = info_of(folder)
    good = {"source": "timm", "sha256": "0" * 64}
    bad = [
        {},
        {"source": "timm"},
        {**good, "sha256": "../x"},
        {**good, "source": "https://example.org"},
        [],
        "timm",
        good,
    ]
    about["base"] = draw.choice([good, good, *bad, {**good, "path": "/etc/passwd"}])
    about["arch"] = draw.choice([about["arch"], about["arch"], "vit_giant_patch14_dinov2", "vgg16"])
    write_info(folder, about)
    header, rest = header_of(folder)
    last = max((k for k in header if k.startswith("0.")), key=lambda k: header[k]["data_offsets"])
    if header[last]["data_offsets"][1] == len(rest) and draw.random() < 0.8:
        rest = rest[: header[last]["data_offsets"][0]]
        del header[last]
        write_header(folder, header, rest)


KINDS: dict[str, Callable[[Random, Path, Path], None]] = {
    f.__name__.replace("_", " "): f
    for f in (
        *(whole, info_values, info_inner_values, info_keys, info_bytes, info_cut, info_texts, info_names, info_classes),
        *(
            info_versions,
            tensors_length,
            tensors_header_bytes,
            tensors_entries,
            tensors_names,
            tensors_cut,
            tensors_numbers,
        ),
        *(pickles, other_files, links, no_files, slim),
    )
}
