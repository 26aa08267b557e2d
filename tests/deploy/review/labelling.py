"""Labels for what a pool suggests, given as a reader does who changes his mind."""

from __future__ import annotations

from octfast.deploy.review.session import Review


def label_four(review: Review) -> tuple[str, str]:
    """Label the first and, at the second go, the second; leave the third out; take back what was said of the fourth."""
    first, second = review.classes[:2]
    review.decide(0, "relabel", first)
    review.decide(1, "relabel", first)
    review.decide(1, "relabel", second)
    review.decide(2, "leave out")
    review.decide(3, "relabel", first)
    assert review.undo() == 3
    return first, second
