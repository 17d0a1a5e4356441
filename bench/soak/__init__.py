"""The soak: steady load with outages of clients, and what grows in the service meanwhile. Nothing should."""
