"""What the database knows of its keys and of the replicas that use them."""
