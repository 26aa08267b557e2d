"""DataLoaders and a network become a trained model in a run folder.

From outside: `again`, `again_units`, `callbacks`, `config`, `frozen`, `job`, `learner`, `plots`, `pool`, `resume`,
`save`, `store.cache`, `tune.result`, `tune.search`, `unit_learner`.
"""
