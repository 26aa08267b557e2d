from __future__ import annotations

import io
import os
import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from octfast.data.decode import Unreadable, decode, spread
from octfast.data.phantom.draw import make_phantom
from octfast.data.prepare import check_file
from tests.pictures import scan


def grey_of(source) -> np.ndarray:
    picture = decode(source)
    assert picture.grey.mode == "L" and picture.grey.size == (picture.width, picture.height)
    return np.asarray(picture.grey)


def saved(picture: Image.Image, form: str, **how) -> bytes:
    out = io.BytesIO()
    picture.save(out, form, **how)
    return out.getvalue()


def words_of(source) -> str:
    return "; ".join(words for _, words in decode(source).changes)


@pytest.fixture(scope="module")
def jpeg() -> bytes:
    return saved(Image.fromarray(make_phantom("CNV", 3)), "JPEG", quality=90)


@pytest.mark.parametrize("how", [{}, {"progressive": True}, {"quality": 40}, {"restart_marker_blocks": 8}])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_sound_jpegs_give_what_pillow_gives(mode, how):
    colour = np.random.default_rng(0).integers(0, 256, (61, 83, 3), dtype=np.uint8)
    data = saved(Image.fromarray(colour).convert(mode), "JPEG", **how)
    np.testing.assert_array_equal(grey_of(data), np.asarray(Image.open(io.BytesIO(data)).convert("L")))
    assert decode(data).changes == ()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("form", "how"), [("JPEG", {"quality": 95}), ("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})]
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_the_noted_orientation_is_applied_and_said(orientation, form, how, mode):
    exif = Image.Exif()
    exif[274] = orientation
    upright = Image.fromarray(scan()).convert(mode)
    data = saved(upright, form, exif=exif, **how)
    plain = Image.open(io.BytesIO(saved(upright, form, **how))).convert(mode)
    plain.getexif()[274] = orientation
    expected = ImageOps.exif_transpose(plain).convert("L")
    np.testing.assert_array_equal(grey_of(data), np.asarray(expected))
    assert ("read upright" in words_of(data)) == (orientation > 1)
    np.testing.assert_array_equal(grey_of(decode(data).grey), np.asarray(expected))
    colour = decode(data).colour
    assert colour is None or colour.size == expected.size
    small = decode(data, small=True)
    assert (small.width, small.height) == expected.size


def test_a_scan_stored_upside_down_is_the_same_scan(tmp_path):
    picture = Image.fromarray(make_phantom("DRUSEN", 1))
    exif = Image.Exif()
    exif[274] = 3
    picture.rotate(180).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(grey_of(tmp_path / "turned.png"), np.asarray(picture))
    assert check_file(tmp_path / "turned.png") == ("", ("L", "rotated"))


def test_a_garbled_orientation_says_nothing():
    data = saved(Image.fromarray(scan()), "PNG", exif=b"Exif\0\0garbled")
    np.testing.assert_array_equal(grey_of(data), scan())


@given(bits=st.integers(9, 16), shift=st.integers(0, 7), form=st.sampled_from(["PNG", "TIFF"]), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_sixteen_bits_give_the_upper_eight_of_those_in_use(bits, shift, form, seed):
    deep = np.random.default_rng(seed).integers(0, 1 << bits, (20, 30)).astype(np.uint16)
    deep = (deep << min(shift, 16 - bits)).astype(np.uint16)
    data = saved(Image.fromarray(deep), form)
    used = next(b for b in (8, 10, 12, 14, 16) if deep.max() < 1 << b)
    np.testing.assert_array_equal(grey_of(data), deep >> (used - 8))
    assert f"0 to {(1 << used) - 1} (the {used} bits in use)" in words_of(data)
    np.testing.assert_array_equal(grey_of(Image.fromarray(deep)), grey_of(data))


@pytest.mark.parametrize("factor", [4, 16, 64, 256, 257])
@pytest.mark.parametrize("brightest", [255, 157, 64])
def test_a_scan_has_the_same_greys_saved_with_more_bits(factor, brightest):
    grey = np.round(scan() / 255 * brightest).astype(np.uint8)
    for form in ("PNG", "TIFF"):
        np.testing.assert_array_equal(grey_of(saved(Image.fromarray(grey.astype(np.uint16) * factor), form)), grey)
    white = (1 << 16) - 1 - grey.astype(np.uint16) * 257
    np.testing.assert_array_equal(grey_of(saved(Image.fromarray(white), "TIFF", tiffinfo={262: 0})), grey)


def test_samples_in_a_narrow_range_are_spread():
    deep = (30000 + 2 * scan().astype(np.int64)).astype(np.uint16)
    data = saved(Image.fromarray(deep), "PNG")
    np.testing.assert_array_equal(grey_of(data), scan())
    assert "30000 to 30510 (in it) spread over black to white" in words_of(data)


def test_the_same_pixels_as_dicom_give_the_same_grey(tmp_path):
    pytest.importorskip("pydicom", minversion="3")
    from octfast.data.volumes.reader import VolumeReader
    from tests.data.volumes.volume_files import write_dicom

    deep = np.random.default_rng(5).integers(300, 3800, (40, 50)).astype("<u2")
    path = write_dicom(tmp_path / "a.dcm", deep[None], BitsStored=12, HighBit=11)
    with VolumeReader() as reader:
        (frame,) = reader.read(path, "dicom")
    np.testing.assert_array_equal(grey_of(saved(Image.fromarray(deep.astype(np.uint16)), "PNG")), frame.pixels)
    turned = write_dicom(
        tmp_path / "b.dcm", deep[None], BitsStored=12, HighBit=11, PhotometricInterpretation="MONOCHROME1"
    )
    with VolumeReader() as reader:
        (frame,) = reader.read(turned, "dicom")
    data = saved(Image.fromarray(deep.astype(np.uint16)), "TIFF", tiffinfo={262: 0})
    np.testing.assert_array_equal(grey_of(data), frame.pixels)


@pytest.mark.parametrize("deep", [False, True])
def test_a_tiff_whose_zero_is_white_is_turned_around(tmp_path, deep):
    tifffile = pytest.importorskip("tifffile")
    samples = scan().astype(np.uint16) * 257 if deep else scan()
    tifffile.imwrite(tmp_path / "a.tif", samples.max() - samples, photometric="miniswhite")
    np.testing.assert_array_equal(grey_of(tmp_path / "a.tif"), scan())
    assert not deep or "white to black" in words_of(tmp_path / "a.tif")


def test_tags_that_name_black_and_white_are_heeded(tmp_path):
    samples = np.array([[0, 1000, 2000, 4000]], np.uint16)
    data = saved(Image.fromarray(samples), "TIFF", tiffinfo={280: 0, 281: 8000})
    assert grey_of(data).tolist() == [[0, 32, 64, 128]] and "0 to 8000 (as its tags say)" in words_of(data)


def test_signed_samples_of_16_bits(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", scan().astype(np.int16) * 100 - 9000)
    np.testing.assert_array_equal(grey_of(tmp_path / "a.tif"), scan())


def test_sixteen_bits_in_colour_whose_upper_half_is_empty_are_refused():
    pytest.importorskip("tifffile")
    import tifffile

    def tiff(factor: int) -> bytes:
        out = io.BytesIO()
        tifffile.imwrite(out, np.dstack([scan().astype(np.uint16) * factor] * 3), photometric="rgb")
        return out.getvalue()

    np.testing.assert_array_equal(grey_of(tiff(257)), scan())
    with pytest.raises(Unreadable, match="save it as grey"):
        decode(tiff(16))


def test_what_has_no_contrast_stays_as_it_is():
    assert spread(np.full((2, 2), 514), 514, 514).tolist() == [[2, 2], [2, 2]]
    assert spread(np.full((1, 1), 514), 514, 514, inverted=True).tolist() == [[253]]


def damaged(data: bytes, how: str, draw: random.Random) -> bytes:
    """A sector wiped, filled with noise or lost, or the file cut short and ended by the mark of an end."""
    # Behind the header, which ends with the tables of codes and the mark of the scan.
    first = data.index(b"\xff\xda") + 14
    at = draw.randrange(first, len(data) - 700)
    if how == "cut":
        return data[:at] + b"\xff\xd9"
    put = {"zero": bytes(600), "noise": draw.randbytes(600), "lost": b""}[how]
    return data[:at] + put + data[at + 600 :]


@pytest.mark.parametrize("how", ["zero", "noise", "lost", "cut"])
@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_damaged_within_is_unreadable_by_every_door(jpeg, tmp_path, how, progressive):
    whole = saved(Image.open(io.BytesIO(jpeg)), "JPEG", progressive=progressive)
    draw = random.Random(how)
    passed = 0
    for n in range(25):
        data = damaged(whole, how, draw)
        (tmp_path / f"{n}.jpeg").write_bytes(data)
        try:
            decode(data)
            passed += 1
        except Unreadable as e:
            assert "\n" not in e.message and e.hint
            with pytest.raises(Unreadable):
                decode(data, small=True)
            assert check_file(tmp_path / f"{n}.jpeg")[0]
    # In the last pass of a progressive file the codes soon fall into step again, and no block is missing at the end.
    assert passed <= (12 if progressive and how in ("zero", "lost") else 0)


def test_a_jpeg_cut_short_that_ends_well_is_truncated(jpeg):
    with pytest.raises(Unreadable) as e:
        decode(jpeg[:6000] + b"\xff\xd9")
    assert e.value.trouble == "truncated" and e.value.reason.startswith("truncated")


@given(
    cut=st.integers(1, 30_000), at=st.integers(0, 30_000), put=st.binary(min_size=1, max_size=40), n=st.integers(0, 11)
)
@settings(max_examples=300, deadline=None)
def test_any_damage_gives_a_picture_or_a_sentence(files_of_all_kinds, cut, at, put, n):
    data = files_of_all_kinds[n % len(files_of_all_kinds)]
    at %= len(data)
    data = (data[:at] + put + data[at + len(put) :])[: max(1, cut % (len(data) + 1))]
    try:
        assert decode(data).grey.mode == "L"
    except Unreadable as e:
        assert "\n" not in e.message and "Traceback" not in e.message and e.reason


@pytest.fixture(scope="module")
def files_of_all_kinds() -> list[bytes]:
    grey, deep = Image.fromarray(scan()), Image.fromarray(scan().astype(np.uint16) * 100)
    pages = {"save_all": True, "append_images": [Image.fromarray(scan(seed=1)), grey]}
    return [
        *(saved(grey, form) for form in ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")),
        *(saved(grey, form, **pages) for form in ("GIF", "PNG", "TIFF", "WEBP")),
        *(saved(deep, form) for form in ("PNG", "TIFF")),
    ]


@pytest.mark.parametrize("form", ["GIF", "TIFF", "PNG", "WEBP"])
def test_several_pictures_cut_short_are_a_sentence(form):
    pictures = [Image.fromarray(scan(seed=n)) for n in range(4)]
    data = saved(pictures[0], form, save_all=True, append_images=pictures[1:])
    for part in np.linspace(1, len(data) - 1, 60, dtype=int):
        try:
            decode(data[:part])
        except Unreadable as e:
            assert "\n" not in e.message


@pytest.mark.parametrize("form", ["GIF", "TIFF", "PNG", "WEBP"])
def test_of_several_pictures_the_first_is_read_with_a_word(form):
    pictures = [Image.fromarray(scan(seed=n)) for n in range(3)]
    data = saved(
        pictures[0], form, save_all=True, append_images=pictures[1:], **({"lossless": True} if form == "WEBP" else {})
    )
    np.testing.assert_array_equal(grey_of(data), scan())
    assert "3 pictures in one file" in words_of(data)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_thumbnail_never_wins_over_the_scan(place):
    pages = [Image.fromarray(scan(6, 8, seed=n)) for n in range(2)]
    pages.insert(place, Image.fromarray(scan()))
    data = saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(grey_of(data), scan())
    assert "the largest is read, of 80x60" in words_of(data)


def test_too_many_scans_and_pixels_are_refused_at_once(jpeg, monkeypatch):
    whole = saved(Image.fromarray(np.zeros((200, 300), np.uint8)), "JPEG", progressive=True)
    last = whole[whole.rfind(b"\xff\xda") : -2]
    with pytest.raises(Unreadable, match="more than 100 scans"):
        decode(whole[:-2] + last * 200 + whole[-2:])
    with pytest.raises(Unreadable, match="more than 1,000"):
        decode(jpeg, max_pixels=1000)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link to a device", "socket"])
def test_only_regular_files_are_opened(tmp_path, kind):
    import socket

    path = tmp_path / "scan.png"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(os.path.relpath(path))
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(Unreadable, match="not a plain file"):
        decode(path)
    # A folder may be a volume of pictures.
    assert ("it holds no pictures" if kind == "folder" else "not a plain file") in check_file(path)[0]


def test_whatever_a_decoder_raises_is_a_sentence(monkeypatch, tmp_path):
    Image.fromarray(scan()).save(tmp_path / "a.png")
    for error in (
        IndexError("x"),
        MemoryError(),
        SyntaxError("broken"),
        KeyError(3),
        RuntimeError("two\nlines"),
        OSError(5, "I/O"),
    ):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(Image.Image, "load", fail)
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
        with pytest.raises(Unreadable) as e:
            decode(tmp_path / "a.png")
        assert "\n" not in e.value.message and str(tmp_path) in e.value.message


def test_pillow_prints_nothing(tmp_path):
    """Corrupt EXIF, more pixels than Pillow likes, tags that are wrong: nothing of it reaches standard error."""
    exif = Image.Exif()
    exif[270] = "x" * 40
    data = bytearray(saved(Image.fromarray(scan()), "JPEG", exif=exif))
    at = data.index(b"Exif")
    data[at + 14 : at + 40] = b"\xff" * 26
    (tmp_path / "a.jpeg").write_bytes(data)
    Image.new("1", (9500, 9500)).save(tmp_path / "b.png")
    code = (
        "from octfast.data.decode import decode; from octfast.data.audit.image_stats import image_stats;"
        f"[image_stats(rf'{tmp_path}/{{n}}') for n in ('a.jpeg', 'b.png')]; decode(r'{tmp_path}/a.jpeg')"
    )
    said = subprocess.run([sys.executable, "-W", "default::UserWarning", "-c", code], capture_output=True, check=True)
    assert said.stderr == b"" and said.stdout == b""
