"""How leads are stored, found, changed and erased."""
