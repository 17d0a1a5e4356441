"""How everything is sealed or indexed anew while the service runs."""
