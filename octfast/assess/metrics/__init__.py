"""A Predictions table becomes metrics with intervals that respect patients.

From outside: `metrics`, `definitions`, `referral`, `costs`, `reliability`, `abstain`, `subgroups`, `intervals`,
`paired`, `statistics`.
"""
