from __future__ import annotations

import pandas as pd
import pytest

from octfast.data.audit.releases import find_release


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
