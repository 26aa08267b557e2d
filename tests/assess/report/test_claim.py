from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from octfast.assess.report.claim import NO, NOT_APPLICABLE, PARTLY, YES, ClaimFacts, claim_answers

facts = st.builds(
    ClaimFacts,
    split=st.sampled_from(["train", "valid", "test"]),
    synthetic=st.booleans(),
    scans=st.integers(1, 10**6),
    patients=st.integers(1, 10**5),
    own_patients=st.none() | st.integers(0, 100),
    shared=st.none() | st.integers(0, 100),
    left_out=st.integers(0, 100),
    groups=st.lists(st.text(max_size=5), max_size=2).map(tuple),
    **{
        name: st.booleans()
        for name in ("pretrained", "history", "heat_maps", "referral", "operating", "calibrated", "label_errors")
    },
)


@given(facts)
def test_claim_has_44_items_each_with_an_honest_answer(found):
    answers = claim_answers(found)
    assert [a.number for a in answers] == list(range(1, 45))
    earlier = [int(a.number_2020) for a in answers if a.number_2020]
    assert len(set(earlier)) == len(earlier) and set(earlier) <= set(range(1, 43))
    by_number = {a.number: a for a in answers}
    assert all(a.status in (YES, PARTLY, NO, NOT_APPLICABLE) and a.words and a.asks for a in answers)
    assert all(a.where for a in answers if a.status in (YES, PARTLY))
    assert by_number[33].status == NO and by_number[31].status != YES
    assert (by_number[32].status == YES) == (found.split == "test")
    if found.shared is None:
        assert by_number[20].status == NO
