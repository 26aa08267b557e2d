"""Files on disk become a table of scans, and that table becomes DataLoaders."""
