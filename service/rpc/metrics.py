"""What is counted and measured. Labels are names from the contract and fixed words, never a caller's values."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# Seconds: from a call that needs no database (half a millisecond) to the longest one that is waited for.
BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """The metrics of one process, in a registry of their own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.calls = Counter(
            "leadkeep_calls", "Calls by rpc, door and status code.", ["rpc", "door", "code"], registry=registry
        )
        self.latency = Histogram(
            "leadkeep_call_seconds", "Time to answer.", ["rpc", "door"], buckets=BUCKETS, registry=registry
        )
        self.in_flight = Gauge("leadkeep_calls_in_flight", "Calls that are being answered.", registry=registry)
        self.client_retries = Counter(
            "leadkeep_client_retries", "Calls that a client had tried before.", ["rpc"], registry=registry
        )
        self.storage_retries = Counter(
            "leadkeep_storage_retries", "Repeated storage calls by SQLSTATE.", ["rpc", "cause"], registry=registry
        )
        self.ready = Gauge("leadkeep_ready", "1 while the service can be used.", registry=registry)
