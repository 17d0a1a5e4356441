"""What happens to a submission between the endpoint and a table."""
