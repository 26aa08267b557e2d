"""Files, folders and volumes in, a table of answers out."""
