"""Who looked at what: the access record and its check."""
