"""A real PostgreSQL and the real service, started for tests."""
