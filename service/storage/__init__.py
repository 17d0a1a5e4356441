"""Where leads are kept: the only package that talks to databases."""
