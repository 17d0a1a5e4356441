"""The command line `leadkeep`."""
