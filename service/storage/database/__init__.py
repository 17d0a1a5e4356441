"""How one statement or transaction is run, bounded in time, and retried."""
