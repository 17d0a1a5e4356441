"""The examples of clients, built as their README says and run against the real service, plain and through faults."""
