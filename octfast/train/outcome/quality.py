"""Fixes, as a training ends, how dark, clipped, cut off or blurred a scan may be before it is remarked upon."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd

from octfast.console import track
from octfast.errors import DataError
from octfast.model.bundle.info import BundleInfo
from octfast.model.bundle.write import update_info
from octfast.model.forward import measured
from octfast.model.quality import MEASURES
from octfast.model.unlike import patient_threshold
from octfast.run.folder import Run
from octfast.train.outcome.distance import MIN_PATIENTS

log = logging.getLogger("octfast")

# Of the scans, every patient counting alike, so many are beyond the limit of each measure.
SHARE = 0.005
# More scans change a limit by less than its own error, and each is decoded once more.
MOST_SCANS = 1000


def keep_quality(run: Run, scans: pd.DataFrame, info: BundleInfo) -> BundleInfo:
    """Fix the limits on training and validation scans, and keep them in the bundle (`calibration.quality`).

    Parameters
    ----------
    scans : a Scans table; of more than `MOST_SCANS` as many are drawn, a patient at a time.

    Returns
    -------
    The bundle's info as it is now.
    """
    table = scans[scans["split"] != "test"]
    patients = table["patient"].nunique()
    if patients < MIN_PATIENTS:
        log.warning("scans of poor quality will not be told: %d patients are too few to say what is usual", patients)
        return info
    drawn = table.sample(frac=1, random_state=0)
    turn = drawn.groupby("patient").cumcount()
    drawn = drawn.loc[turn.sort_values(kind="stable").index[:MOST_SCANS]]
    found = []
    with track("measuring what scans look like", len(drawn)) as update:
        for each in measured(info, drawn["path"].tolist()):
            found.append(each)
            update(len(found), len(drawn))
    good = [i for i, each in enumerate(found) if not isinstance(each, DataError)]
    whose = drawn["patient"].astype(str).to_numpy()[good].tolist()
    limits = {
        name: round(patient_threshold(np.array([found[i][name] for i in good]), whose, SHARE), 6)  # type: ignore[index]
        for name in MEASURES
    }
    about = {"share": SHARE, "scans": len(good), "patients": len(set(whose)), "limits": limits}
    log.info("a scan's quality will be remarked upon where 0.5%% of %d patients' scans are as poor", about["patients"])
    return update_info(run.bundle, calibration={**info.calibration, "quality": about})
