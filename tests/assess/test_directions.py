"""Features are standardised a part at a time, as if at once."""

import numpy as np
from sklearn.preprocessing import StandardScaler, normalize

from octfast.assess.directions import Directions


def test_parts_give_what_all_at_once_gives_and_the_features_stay():
    rng = np.random.default_rng(0)
    known = (5 + rng.normal(size=(9001, 3)) * [1, 10, 0]).astype(np.float32)
    given = known.copy()
    found = Directions(known).of(known)
    assert np.allclose(found, normalize(StandardScaler().fit_transform(known)), atol=1e-4)
    assert found.dtype == np.float32 and np.array_equal(known, given)
