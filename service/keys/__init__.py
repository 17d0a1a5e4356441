"""What a key is, and how a field is sealed, opened and indexed."""
