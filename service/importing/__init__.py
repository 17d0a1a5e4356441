"""Leads that come in as files: each row is decided alone, and every row is told what became of it."""
