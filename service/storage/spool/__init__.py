"""Where a lead waits in an outage."""
