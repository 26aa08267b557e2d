"""Files on disk become a table of scans, and that table becomes DataLoaders.

From outside: `scans`, `corrections`, `prepare`, `decode`, `look`, `fit`, `preprocess`, `shapes`, `loaders`,
`wedges`, `explore`, `extract`, `download`, `readers.folder`, `readers.read`, `readers.load`, `readers.columns`,
`readers.locate`, `readers.names`, `readers.volumes`, `readers.walk`, `splits.files`, `splits.folds`, `splits.groups`,
`splits.hold_out`, `audit.audit`, `audit.releases`, `phantom.draw`, `phantom.faults`, `phantom.volumes`, `units`,
`volumes.about`, `volumes.exports`, `volumes.kinds`, `volumes.reader`, `volumes.series`, `volumes.store`, `workers`.
"""
