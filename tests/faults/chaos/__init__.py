"""The real service and a real PostgreSQL, killed and frozen under load, and what was acknowledged compared with what is
stored. `python -m tests.faults.chaos` runs the long form, with `--short` a short one."""
