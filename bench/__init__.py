"""Measurements of the running service. Ratios within one run count; absolute numbers belong to one machine."""
