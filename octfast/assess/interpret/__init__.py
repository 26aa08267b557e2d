"""Where a model goes wrong: confusion, losses, heat maps, suspected labels, single scans.

From outside: `interpret`, `interpretation`, `show`, `heatmap`, `label_errors`, `missed_units`, `neighbours`,
`rows`.
"""
