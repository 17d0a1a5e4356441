"""The embedded PostgreSQL: its programs, folders and processes."""
