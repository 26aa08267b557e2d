"""DataLoaders and a network become a trained model in a run folder.

From outside: `callbacks`, `config`, `frozen`, `job`, `learner`, `plots`, `store.cache`.
"""
