"""What the daily files read from the database, and how they are read back."""
