from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance, ImageOps
from typer.testing import CliRunner

from octfast.cli.data import app as data_app
from octfast.data.audit.audit import audit
from octfast.data.audit.checks import MEANING
from octfast.data.phantom.draw import make_phantom, write_phantoms
from octfast.errors import DataError
from tests.conftest import SHARED
from tests.data.audit.samples import again, files, picture, save, scan_table

REAL = SHARED / "data" / "oct2017-sample"


def found(root: Path | pd.DataFrame, *severities: str) -> set[tuple[str, str]]:
    """Check and file name of the findings; by default without the notes."""
    table = audit(root, 1).findings
    kept = table[table["severity"].isin(severities or ("error", "warning"))]
    return {(row.check, Path(row.path).name) for row in kept.itertuples()}


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
