"""Leadkeep keeps the leads that chatbots collect: encrypted, free of duplicates, and never lost."""
