"""The story's own design, as its readers would write it: what Leadkeep is measured beside."""
