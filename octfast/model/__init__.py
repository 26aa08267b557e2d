"""A name becomes a network of body and head, kept on disk as a bundle, run forward, and its answers decided.

From outside: `arch`, `heads`, `engine`, `device`, `compiler`, `memory`, `networks`, `prefetch`, `quality`, `forward`,
`temperature`, `decide`, `summary`, `bundle.build`, `bundle.info`, `bundle.read`, `bundle.write`, `bundle.show`,
`bundle.state`, `bundle.carry`, `bundle.distance`, `pooling`, `units`, `aggregation`, `fit_aggregation`, `unlike`,
`weights.load`, `weights.untrained`.
"""
