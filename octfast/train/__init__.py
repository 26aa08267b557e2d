"""DataLoaders and a network become a trained model in a run folder.

From outside: `again.again`, `again.again_units`, `again.pool`, `callbacks`, `config`, `frozen.frozen`, `job`,
`learner`, `plots`, `resume`, `save`, `store.cache`, `tune.result`, `tune.search`, `unit_learner`.
"""
