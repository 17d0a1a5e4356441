"""How the database is dumped, verified and restored."""
