"""Makes features comparable by their cosine: standardised, and each row of length one."""

from __future__ import annotations

import numpy as np

# Rows that are counted in at once: scikit-learn makes copies of them in double precision.
_ROWS = 4096


class Directions:
    """Standardises features by those of known scans, and makes each row of length one.

    Parameters
    ----------
    known : of shape (scans, dim).
    """

    def __init__(self, known: np.ndarray):
        from sklearn.preprocessing import StandardScaler

        self._scaler = StandardScaler()
        for i in range(0, len(known), _ROWS):
            self._scaler.partial_fit(known[i : i + _ROWS])

    def of(self, features: np.ndarray) -> np.ndarray:
        """What becomes of features, of shape (scans, dim); they stay as they are."""
        from sklearn.preprocessing import normalize

        return normalize(self._scaler.transform(features), copy=False)
