"""The schema's history, run by `service.storage.schema`."""
