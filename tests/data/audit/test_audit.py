from __future__ import annotations

import io
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps
from typer.testing import CliRunner

from octfast.cli.data import app as data_app
from octfast.data.audit.annotations import find_marks, white_border
from octfast.data.audit.audit import audit, quick_audit
from octfast.data.audit.checks import MEANING, check_table, wilson
from octfast.data.audit.duplicates import Copy, agreement, exact_copies, mirror_textures, near_copies, near_pairs
from octfast.data.audit.image_stats import Look, look_at, look_at_all, texture
from octfast.data.audit.releases import find_release
from octfast.data.phantom.draw import make_phantom, write_phantoms
from octfast.data.readers.folder import read_scans
from octfast.errors import DataError
from tests.conftest import SHARED

REAL = SHARED / "data" / "oct2017-sample"


@pytest.fixture(scope="session")
def clean(tmp_path_factory) -> Path:
    """120 phantoms of 128 x 128, 40 of them for testing. Nobody writes into it."""
    return write_phantoms(tmp_path_factory.mktemp("audit") / "clean", 120, size=128, seed=5, test=1 / 3)


@pytest.fixture
def own(clean, tmp_path) -> Path:
    """A copy of the clean phantoms that a test may damage."""
    return Path(shutil.copytree(clean, tmp_path / "own"))


def files(root: Path, split: str = "train", label: str = "CNV") -> list[Path]:
    """One file of each patient of a class, so that a fault in one says nothing of another."""
    found: dict[str, Path] = {}
    for path in sorted((root / split / label).iterdir()):
        found.setdefault(path.stem.split("-")[1], path)
    return list(found.values())


def picture(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("L")


def save(image: Image.Image, path: Path, kind: str = "JPEG", **options) -> Path:
    image.save(path, kind, **options)
    return path


def again(image: Image.Image, quality: int = 75) -> Image.Image:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return Image.open(out).convert("L")


def found(root: Path | pd.DataFrame, *severities: str) -> set[tuple[str, str]]:
    """Check and file name of the findings; by default without the notes."""
    table = audit(root, 1).findings
    kept = table[table["severity"].isin(severities or ("error", "warning"))]
    return {(row.check, Path(row.path).name) for row in kept.itertuples()}


def scan_table(*rows: tuple[str, str, str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["path", "label", "patient", "split"])


def checks(scans: pd.DataFrame) -> set[tuple[str, str]]:
    return {(f.severity, f.check) for f in check_table(scans)}


# The clean copy


def test_nothing_is_said_against_clean_phantoms(clean):
    result = audit(clean)
    assert set(result.findings["check"]) <= {"white-border"}
    assert not result.spoils
    assert (result.scans, result.readable) == (120, 120)
    assert result.counts.loc["test", "scans"] == 40


def test_nothing_is_said_against_clean_phantoms_of_full_size(tmp_path):
    assert found(write_phantoms(tmp_path / "full", 80, seed=7, test=0)) == set()


@pytest.mark.realdata
@pytest.mark.skipif(not REAL.is_dir(), reason="no shared data")
def test_of_the_real_sample_only_what_is_true():
    result = audit(REAL)
    assert (result.scans, result.readable, result.patients) == (32, 32, 25)
    assert set(result.findings["check"]) == {"few-scans", "white-border", "release"}
    assert "validation folder of OCT2017" in result.release and "early stopping" in result.release
    assert not result.spoils


def test_no_file_is_changed(own):
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in own.rglob("*") if p.is_file()}
    audit(own)
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in own.rglob("*") if p.is_file()} == before


# Each fault, planted


def test_broken_files(own):
    empty, cut, text, suffix = files(own)[:4]
    empty.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[:1500])
    text.write_text("no picture")
    save(picture(suffix), suffix, "PNG")
    assert found(own) == {
        ("empty", empty.name),
        ("truncated", cut.name),
        ("not-a-picture", text.name),
        ("wrong-extension", suffix.name),
    }
    assert audit(own).readable == 117


def test_a_png_cut_short(own):
    path = files(own)[0]
    png = save(picture(path), path.with_suffix(".png"), "PNG")
    path.unlink()
    png.write_bytes(png.read_bytes()[:3000])
    assert found(own) == {("truncated", png.name)}


def test_the_same_bytes_in_a_class_across_classes_and_across_splits(own):
    a, b, c = files(own)[:3]
    shutil.copy(a, own / "train" / "CNV" / "CNV-99001-1.jpeg")
    shutil.copy(b, own / "train" / "DME" / "DME-99002-1.jpeg")
    shutil.copy(c, own / "test" / "CNV" / "CNV-99003-1.jpeg")
    result = audit(own)
    loud = result.findings[result.findings["severity"] != "note"]
    pairs = {(r.severity, r.check, frozenset((Path(r.path).name, Path(r.related).name))) for r in loud.itertuples()}
    assert pairs == {
        ("warning", "duplicate", frozenset((a.name, "CNV-99001-1.jpeg"))),
        ("error", "duplicate-across-classes", frozenset((b.name, "DME-99002-1.jpeg"))),
        ("error", "duplicate-across-splits", frozenset((c.name, "CNV-99003-1.jpeg"))),
    }
    assert result.spoils


def test_the_same_pixels_in_other_bytes(own):
    path = files(own)[0]
    save(picture(path), own / "test" / "CNV" / "CNV-99001-1.png", "PNG")
    table = audit(own).findings
    (row,) = table[table["severity"] == "error"].itertuples()
    assert row.check == "duplicate-across-splits" and "the same pixels" in row.detail


@pytest.mark.parametrize(
    "change",
    [
        lambda p: again(p, 50),
        lambda p: again(p, 95),
        lambda p: again(p.resize((115, 115), Image.Resampling.BILINEAR)),
        lambda p: p.resize((224, 224), Image.Resampling.BICUBIC),
        lambda p: again(ImageEnhance.Brightness(p).enhance(1.12)),
        lambda p: p.point(lambda v: min(255, v + 10)),
        lambda p: again(ImageOps.mirror(p), 85),
    ],
    ids=["quality 50", "quality 95", "smaller", "larger", "brighter", "lifted", "mirrored"],
)
def test_near_duplicates(clean, own, change):
    inside, leak = files(own, "train", "DME")[:2]
    save(change(picture(inside)), own / "train" / "DME" / "DME-99001-1.png", "PNG")
    save(change(picture(leak)), own / "test" / "DRUSEN" / "DRUSEN-99002-1.png", "PNG")
    table = audit(own).findings
    loud = table[table["severity"] != "note"]
    pairs = {(r.check, frozenset((Path(r.path).name, Path(r.related).name))) for r in loud.itertuples()}
    assert pairs == {
        ("near-duplicate", frozenset((inside.name, "DME-99001-1.png"))),
        ("near-duplicate-across-splits", frozenset((leak.name, "DRUSEN-99002-1.png"))),
        ("near-duplicate-across-classes", frozenset((leak.name, "DRUSEN-99002-1.png"))),
    }


def test_slices_of_one_eye_are_no_copies():
    slices = [Image.fromarray(make_phantom("DRUSEN", 4, i)) for i in range(12)]
    textures = np.stack([texture(s) for s in slices])
    first, second = np.triu_indices(12, 1)
    assert agreement(textures[first], textures[second]).max() < 0.45
    copies = np.stack([texture(again(s, 50)) for s in slices])
    assert agreement(textures, copies).min() > 0.75


def test_patients_in_two_splits_and_under_two_labels(own):
    leak, conflict = files(own)[:2]
    number, other = (p.stem.split("-")[1] for p in (leak, conflict))
    new = Image.fromarray(make_phantom("CNV", 4711, 9)).resize((128, 128))
    save(new, own / "test" / "CNV" / f"CNV-{number}-90.jpeg")
    new = Image.fromarray(make_phantom("DME", 4712, 9)).resize((128, 128))
    save(new, own / "train" / "DME" / f"DME-{other}-90.jpeg")
    of = {p.name: p.stem.split("-")[1] for p in own.rglob("*.jpeg")}
    assert {(check, of[name]) for check, name in found(own)} == {
        ("patient-across-splits", number),
        ("patient-two-labels", other),
    }


def test_odd_pictures(own):
    names = ["grey", "black", "dim", "colour", "sixteen", "cmyk", "clear", "moving", "wide", "tiny"]
    at = dict(zip(names, files(own) + files(own, label="DME"), strict=False))
    scan = {name: picture(path) for name, path in at.items()}
    pixels = np.asarray(scan["colour"]).astype(int)
    save(Image.new("L", (128, 128), 200), at["grey"])
    save(Image.new("L", (128, 128), 0), at["black"])
    save(scan["dim"].point(lambda v: v // 12), at["dim"], quality=100)
    false = np.stack([pixels, 255 - pixels, pixels // 2], axis=-1).astype(np.uint8)
    save(Image.fromarray(false), at["colour"])
    save(scan["cmyk"].convert("RGB").convert("CMYK"), at["cmyk"])
    save(scan["wide"].resize((640, 40)), at["wide"])
    save(scan["tiny"].resize((50, 50)), at["tiny"])

    def other(name: str, image: Image.Image, kind: str, **options) -> str:
        at[name].unlink()
        return save(image, at[name].with_suffix(f".{kind.lower()}"), kind, **options).name

    sixteen = Image.fromarray(np.asarray(scan["sixteen"]).astype(np.uint16) * 257)
    clear = scan["clear"].convert("RGBA")
    clear.putalpha(128)
    renamed = {
        "sixteen": other("sixteen", sixteen, "PNG"),
        "clear": other("clear", clear, "PNG"),
        "moving": other("moving", scan["moving"], "GIF", save_all=True, append_images=[scan["dim"], scan["wide"]]),
    }
    assert found(own) == {
        ("blank", at["grey"].name),
        ("blank", at["black"].name),
        ("dark", at["dim"].name),
        ("colour", at["colour"].name),
        ("16-bit", renamed["sixteen"]),
        ("cmyk", at["cmyk"].name),
        ("transparent", renamed["clear"]),
        ("animated", renamed["moving"]),
        ("odd-size", at["wide"].name),
        ("odd-size", at["tiny"].name),
    }
    assert {("other-format", name) for name in renamed.values()} < found(own, "note")


def test_grey_stored_as_colour_is_nothing_odd(own):
    for path in files(own):
        save(picture(path).convert("RGB"), path)
    assert found(own) == set()


def test_what_most_scans_are_is_but_a_note(tmp_path):
    rng = np.random.default_rng(0)
    for label in ("A", "B"):
        (tmp_path / label).mkdir()
        for i in range(24):
            samples = rng.integers(0, 65536, (70, 70)).astype(np.uint16)
            save(Image.fromarray(samples), tmp_path / label / f"{label}-{label}{i}-1.png", "PNG")
    assert found(tmp_path) == set()
    assert len([1 for check, _ in found(tmp_path, "note") if check == "16-bit"]) == 48


def test_a_picture_of_nothing_but_near_white_is_looked_at(tmp_path):
    samples = np.full((96, 96), 250, np.uint8)
    samples[:, 48:] = 255
    look = look_at(save(Image.fromarray(samples), tmp_path / "white.png", "PNG"))
    assert look.trouble == "" and look.border == 1


# Burnt-in text


def phantom(label: str = "NORMAL", patient: int = 1) -> Image.Image:
    return Image.fromarray(make_phantom(label, patient))


@pytest.mark.parametrize("size, at", [(12, (6, 6)), (16, (10, 460)), (22, (200, 12))])
def test_letters_are_found(size, at):
    scan = phantom()
    ImageDraw.Draw(scan).text(at, "OD 12/03/2011 ART 100", fill=255, font=ImageFont.load_default(size=size))
    assert "letters" in find_marks(np.asarray(again(scan, 85)))
    assert find_marks(np.asarray(phantom())) == ""


def test_a_scale_bar_and_coloured_marks_are_found(tmp_path):
    scan = phantom()
    ImageDraw.Draw(scan).line((380, 470, 480, 470), fill=255, width=2)
    assert "line" in find_marks(np.asarray(scan))
    arrow = phantom().convert("RGB")
    ImageDraw.Draw(arrow).line((100, 60, 160, 120), fill=(255, 255, 0), width=3)
    ((check, detail),) = look_at(save(arrow, tmp_path / "arrow.png", "PNG")).seen
    assert check == "burnt-in" and "surely" in detail


@pytest.mark.parametrize("side", [64, 128, 224, 300, 496])
def test_no_letters_where_there_are_none(side):
    for label in ("CNV", "DME", "DRUSEN", "NORMAL"):
        for patient in range(3):
            assert find_marks(np.asarray(phantom(label, patient).resize((side, side), Image.Resampling.BILINEAR))) == ""


@pytest.mark.parametrize("shape", [8, 4, 2])
def test_no_letters_in_strong_speckle(shape):
    rng = np.random.default_rng(shape)
    for patient in range(4):
        scan = np.asarray(phantom("CNV", patient)).astype(float)
        noisy = (1.3 * scan * rng.gamma(shape, 1 / shape, scan.shape)).clip(0, 255).astype(np.uint8)
        assert find_marks(noisy) == ""


def test_white_that_touches_the_border_is_border():
    thumb = np.full((96, 96), 40, np.uint8)
    thumb[40:50, 40:50] = 255
    assert white_border(thumb) == 0
    thumb[:10, :48] = 255
    assert white_border(thumb) == pytest.approx(480 / 96**2)


# The search for near-duplicates


@given(
    bits=st.integers(1, 40),
    n=st.integers(0, 30),
    radius=st.integers(0, 12),
    seed=st.integers(0, 10_000),
    spread=st.floats(0, 0.5),
)
def test_the_search_finds_what_comparing_all_finds(bits, n, radius, seed, spread):
    rng = np.random.default_rng(seed)
    # Around a few centres, so that near pairs are common, not one in a million.
    centres = rng.integers(0, 2, (3, bits))
    strings = centres[rng.integers(0, 3, n)] ^ (rng.random((n, bits)) < spread)
    codes = np.packbits(strings.astype(np.uint8), axis=1)
    wanted = [[i, j] for i in range(n) for j in range(i + 1, n) if (strings[i] != strings[j]).sum() <= radius]
    assert near_pairs(codes, radius, codes.shape[1] * 8 - bits).tolist() == wanted


@given(n=st.integers(0, 12), radius=st.integers(0, 6), seed=st.integers(0, 10_000))
def test_the_search_for_mirror_images_finds_what_comparing_all_finds(n, radius, seed):
    rng = np.random.default_rng(seed)
    strings = rng.integers(0, 2, (2, 16))[rng.integers(0, 2, 2 * n)] ^ (rng.random((2 * n, 16)) < 0.15)
    codes = np.packbits(strings.astype(np.uint8), axis=1)

    def near(a: int, b: int) -> bool:
        return bool((strings[a] != strings[b]).sum() <= radius)

    wanted = [[i, j] for i in range(n) for j in range(i + 1, n) if near(2 * i, 2 * j + 1) or near(2 * i + 1, 2 * j)]
    assert near_pairs(codes, radius, mirror=True).tolist() == wanted


def test_the_search_is_not_quadratic():
    codes = np.random.default_rng(0).integers(0, 256, (40_000, 18), dtype=np.uint8)
    codes[30_000:30_010] = codes[:10]
    started = time.perf_counter()
    assert near_pairs(codes, 11).tolist() == [[i, 30_000 + i] for i in range(10)]
    # Comparing all 800 million pairs takes minutes.
    assert time.perf_counter() - started < 20


def test_copies_of_copies_are_linked_to_one_that_they_are_copies_of(tmp_path):
    scan = phantom("CNV", 3).resize((256, 256))
    other = phantom("DME", 8).resize((256, 256))
    chain = [save(again(scan, q), tmp_path / f"{i}.png", "PNG") for i, q in enumerate((95, 70, 45))]
    looks = look_at_all([str(p) for p in (*chain[:1], save(other, tmp_path / "z.png", "PNG"), *chain[1:])])
    links = near_copies(looks)
    assert {link.copy for link in links} == {2, 3}
    assert all(link.of in (0, 2, 3) and link.of != link.copy for link in links)


def test_hardly_any_texture_is_no_agreement():
    flat = np.zeros((1, 2, 512), dtype=np.uint8)
    flat[0, 0, :10] = 255
    assert agreement(flat, flat).tolist() == [0.0]


def test_mirrored_textures_are_those_of_the_mirror_image():
    scan = phantom("DRUSEN", 2).resize((256, 256))
    assert agreement(mirror_textures(texture(scan)[None]), texture(ImageOps.mirror(scan))[None])[0] > 0.97
    assert agreement(texture(scan)[None], texture(ImageOps.mirror(scan))[None])[0] < 0.4


def test_exact_copies_are_given_with_the_first():
    assert exact_copies([b"a", b"", b"b", b"a", b"", b"a"], "same") == [Copy(0, 3, "same"), Copy(0, 5, "same")]


def test_blank_and_small_scans_are_like_no_other(tmp_path):
    for i in range(3):
        save(Image.new("L", (80, 80), 0), tmp_path / f"blank-{i}.png", "PNG")
        save(
            Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 40), np.uint8)), tmp_path / f"{i}.png", "PNG"
        )
    looks = look_at_all(sorted(map(str, tmp_path.iterdir())))
    assert all(look.hashes is None for look in looks)
    assert near_copies(looks) == []


# The table


def test_missing_and_tiny_classes():
    many = [(f"/d/train/{c}/{c}-{i}{k}-1.png", c, f"{k}{i}", "train") for k, c in enumerate("AB") for i in range(30)]
    assert checks(scan_table(*many)) == set()
    lacking = [(f"/d/test/A/A-t{i}-1.png", "A", f"t{i}", "test") for i in range(12)]
    found = check_table(scan_table(*many, *lacking))
    assert [(f.severity, f.check, f.detail) for f in found] == [("error", "class-missing", "test has no scan of B")]
    tiny = [(f"/d/test/B/B-u{i}-1.png", "B", f"u{i}", "test") for i in range(3)]
    assert checks(scan_table(*many, *lacking, *tiny)) == {("warning", "few-scans")}


def test_a_small_validation_split_is_said_with_its_interval():
    def table(n: int) -> pd.DataFrame:
        train = [(f"/d/{c}-t{k}{i}-1.png", c, f"t{k}{i}", "train") for k, c in enumerate("AB") for i in range(30)]
        valid = [(f"/v/{c}-v{k}{i}-1.png", c, f"v{k}{i}", "valid") for k, c in enumerate("AB") for i in range(n // 2)]
        return scan_table(*train, *valid)

    (finding,) = check_table(table(32))
    assert finding.check == "small-validation"
    assert "29 of 32 right" in finding.detail and "75.8% to 96.8%" in finding.detail and "21 points" in finding.detail
    assert check_table(table(400)) == []


@pytest.mark.parametrize("right, scans, low, high", [(29, 32, 0.7578, 0.9676), (966, 1000, 0.9529, 0.9755)])
def test_wilson(right, scans, low, high):
    # By Wilson's formula; the second is the interval of Kermany's figure, 95.3 to 97.6 in facts.
    z, p = 1.959964, right / scans
    middle, half = p + z * z / (2 * scans), z * np.sqrt(p * (1 - p) / scans + z * z / (4 * scans**2))
    assert wilson(right, scans) == pytest.approx(
        ((middle - half) / (1 + z * z / scans), (middle + half) / (1 + z * z / scans)), abs=1e-6
    )
    assert wilson(right, scans) == pytest.approx((low, high), abs=1e-3)


def test_names_in_two_places():
    rows = [
        ("/d/train/CNV/CNV-1-1.jpeg", "CNV", "1", "train"),
        ("/d/train/DME/DME-2-1.jpeg", "DME", "2", "train"),
        ("/d/test/CNV/cnv-1-1.jpeg", "CNV", "1", "test"),
        ("/d/train/CNV/0001.png", "CNV", "train/CNV/0001.png", "train"),
        ("/d/train/DME/0001.png", "DME", "train/DME/0001.png", "train"),
    ]
    found = [f for f in check_table(scan_table(*rows)) if f.check == "same-name"]
    assert [(f.severity, f.path, f.related) for f in found] == [
        ("note", "", ""),
        ("warning", "/d/test/CNV/cnv-1-1.jpeg", "/d/train/CNV/CNV-1-1.jpeg"),
    ]


def counted(**splits: tuple[int, ...]) -> pd.DataFrame:
    rows = [
        pd.DataFrame({"label": label, "split": split}, index=range(n))
        for split, numbers in splits.items()
        for label, n in zip(("CNV", "DME", "DRUSEN", "NORMAL"), numbers, strict=True)
    ]
    return pd.concat(rows, ignore_index=True)


@pytest.mark.parametrize(
    "splits, name",
    [
        ({"train": (37205, 11348, 8616, 26315), "valid": (8,) * 4, "test": (242,) * 4}, "OCT2017, the copy on Kaggle"),
        ({"train": (37205, 11348, 8616, 51140), "test": (250,) * 4}, "OCT2017, Mendeley v3"),
        ({"train": (37206, 11349, 8617, 51140), "test": (250,) * 4}, "OCT2017 as the paper counts it"),
        ({"train": (37205, 11348, 8616, 26315)}, "the training folder of OCT2017's copy on Kaggle"),
        ({"train": (8, 8, 8, 8)}, "the validation folder of OCT2017's copy on Kaggle"),
        ({"train": (242,) * 4}, "the test folder of OCT2017's copy on Kaggle"),
        ({"train": (250,) * 4}, "the test folder of OCT2017, Mendeley v3"),
    ],
)
def test_releases_by_their_counts(splits, name):
    release = find_release(counted(**splits))
    assert release is not None and release.name == name and release.exact and release.trouble


def test_nearly_a_release_and_none():
    near = find_release(counted(train=(37200, 11348, 8616, 26300), valid=(8,) * 4, test=(242,) * 4))
    assert near is not None and not near.exact and str(near).startswith("nearly OCT2017, the copy on Kaggle: 20 scans")
    assert find_release(counted(train=(48,) * 4, test=(12,) * 4)) is None
    assert find_release(pd.DataFrame({"label": ["A"] * 8 + ["B"] * 8, "split": "train"})) is None


# The quick one


def test_the_quick_audit_finds_leaks_without_decoding(own, monkeypatch):
    a, b, c = files(own)[:3]
    shutil.copy(a, own / "test" / "CNV" / "CNV-99003-1.jpeg")
    shutil.copy(b, own / "train" / "DME" / "DME-99004-1.jpeg")
    shutil.copy(c, own / "train" / "CNV" / "CNV-99005-1.jpeg")
    scans = read_scans(own)
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("a picture was opened"))
    assert [(f.severity, f.check) for f in quick_audit(scans)] == [
        ("error", "duplicate-across-splits"),
        ("error", "duplicate-across-classes"),
    ]


def test_the_quick_audit_of_clean_phantoms_is_empty(clean):
    assert quick_audit(read_scans(clean)) == []


# What is given back


def test_the_worst_come_first_and_all_of_it_is_json(own):
    empty, grey = files(own)[:2]
    empty.write_bytes(b"")
    save(Image.new("L", (128, 128), 90), grey)
    result = audit(own)
    order = [("error", "warning", "note").index(s) for s in result.findings["severity"]]
    assert order == sorted(order) and order[0] == 0
    plain = json.loads(json.dumps(result.to_dict()))
    assert plain["spoils"] is True
    assert [row["check"] for row in plain["summary"]][:2] == ["empty", "blank"]
    assert set(result.findings["check"]) <= set(MEANING)


def test_threads_make_no_difference(own):
    for path in files(own)[:6]:
        path.write_bytes(path.read_bytes()[:900])
    one, three = audit(own, 1), audit(own, 3)
    pd.testing.assert_frame_equal(one.findings, three.findings)


def test_an_empty_table_is_refused():
    with pytest.raises(DataError, match="no scans to audit"):
        audit(scan_table())


def test_a_look_never_raises(tmp_path):
    assert look_at(tmp_path / "gone.png").trouble == "unreadable"
    (tmp_path / "a.png").write_bytes(b"PK\x03\x04 something")
    assert look_at(tmp_path / "a.png")[:2] == ("not-a-picture", "a zip archive")
    save(Image.fromarray(np.zeros((80, 80), np.float32)), tmp_path / "f.tif", "TIFF")
    assert look_at(tmp_path / "f.tif").trouble == "unreadable"
    assert Look().hashes is None


@given(cut=st.integers(1, 4000), flip=st.integers(0, 3999), value=st.integers(0, 255))
def test_a_look_at_a_damaged_file_never_raises(clean, tmp_path, cut, flip, value):
    data = bytearray(files(clean)[0].read_bytes()[:cut])
    data[flip % len(data)] = value
    path = tmp_path / "damaged.jpeg"
    path.write_bytes(data)
    look = look_at(path)
    assert look.trouble in ("", "truncated", "not-a-picture", "unreadable")


# The command


def command(*words: object):
    return CliRunner().invoke(data_app, ["audit", *map(str, words)])


def test_the_command_lists_findings_and_ends_with_1(own, tmp_path):
    empty = files(own)[0]
    empty.write_bytes(b"")
    out = tmp_path / "findings.csv"
    ended = command(own, "--out", out)
    assert ended.exit_code == 1
    assert "Something here would spoil a result" in ended.stdout and "empty files" in ended.stdout
    table = pd.read_csv(out)
    assert list(table.columns) == ["severity", "check", "path", "detail", "related"]
    assert Path(table["path"].iloc[0]).name == empty.name
    before = out.read_bytes()
    refused = command(own, "--out", out).exception
    assert isinstance(refused, DataError) and "is not overwritten" in refused.message
    assert out.read_bytes() == before


def test_the_command_ends_with_0_on_clean_phantoms_and_prints_json_alone(clean):
    ended = command(clean, "--json")
    assert ended.exit_code == 0
    assert json.loads(ended.stdout)["scans"] == 120
