"""What is said of long scans before a training."""

from __future__ import annotations

import pandas as pd
from PIL import Image

from octfast.data.shapes import say_shapes


def table(tmp_path, *shapes) -> pd.DataFrame:
    paths = []
    for n, shape in enumerate(shapes):
        Image.new("L", shape).save(tmp_path / f"{n}.png")
        paths.append(str(tmp_path / f"{n}.png"))
    return pd.DataFrame({"path": paths})


def test_how_much_is_not_seen_is_a_warning(tmp_path, caplog, said):
    say_shapes(table(tmp_path, (100, 100), (150, 100), (400, 100), (200, 100), (100, 1000)), "crop")
    (line,) = said()
    assert "3 of 5 scans are longer than 1.5 : 1, and of these 75% (the median) is not seen" in line
    assert [r.levelname for r in caplog.records] == ["WARNING"]


def test_what_is_squeezed_is_a_hint(tmp_path, caplog, said):
    scans = table(tmp_path, (100, 100), (400, 100))
    scans.loc[2] = [str(tmp_path / "is not there.png")]
    say_shapes(scans, "squeeze")
    (line,) = said()
    assert "1 of 2 scans are longer than 1.5 : 1 and are squeezed; --fit crop" in line
    assert [r.levelname for r in caplog.records] == ["INFO"]


def test_nothing_is_said_of_scans_that_are_almost_square(tmp_path, said):
    for fit in ("squeeze", "crop"):
        say_shapes(table(tmp_path, (150, 100), (100, 100)), fit)
    assert said() == []


def test_a_picture_stored_on_its_side_is_as_long_as_it_is_shown(tmp_path, said):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (100, 400)).save(tmp_path / "turned.jpeg", exif=exif)
    say_shapes(pd.DataFrame({"path": [str(tmp_path / "turned.jpeg")]}), "crop")
    assert "1 of 1 scans" in said()[0]
