from __future__ import annotations

import numpy as np
import pytest

from octfast.data.phantom.anatomy import GREYS, Lesion, draw_eye, draw_lesions


def kinds(label: str, seed: int) -> set[str]:
    return {lesion.kind for lesion in draw_lesions(label, np.random.default_rng(seed))}


@pytest.mark.parametrize(
    "label, some", [("DRUSEN", {"drusen"}), ("DME", {"swelling", "cyst"}), ("CNV", {"detachment", "matter"})]
)
def test_each_disease_has_its_lesions(label, some):
    assert all(kinds(label, seed) & some for seed in range(40))


def test_a_normal_eye_has_small_drusen_at_most():
    drawn = [kinds("NORMAL", seed) for seed in range(60)]
    assert set().union(*drawn) <= {"drusen"} and sum(map(bool, drawn)) < 20


def test_a_lesion_is_highest_in_its_middle_and_ends_at_its_edge():
    lesion = Lesion("drusen", x=10, z=0, rx=20, ry=12, rz=30)
    x = np.arange(-60.0, 80.0)
    dome = lesion.dome(x, 0)
    assert x[dome.argmax()] == 10 and dome.max() == pytest.approx(12)
    assert (dome[np.abs(x - 10) >= 20] == 0).all()
    assert lesion.dome(x, 15).max() < dome.max() and not lesion.dome(x, 31).any()


def test_the_eye_does_not_depend_on_its_lesions():
    some = draw_lesions("CNV", np.random.default_rng(1))
    plain, sick = (draw_eye(np.random.default_rng(3), lesions) for lesions in ((), some))
    assert plain.thickness == sick.thickness and plain.greys == sick.greys and set(plain.greys) == set(GREYS)
    assert plain.width == sick.width and (plain.vessels == sick.vessels).all()
