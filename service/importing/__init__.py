"""Leads that come in as files: each row is decided alone, and the result of each is reported."""
