"""What one run of the load generator sends, and what it brings back. Both travel through a pipe, pickled."""

from __future__ import annotations

from dataclasses import dataclass, field

PLACE = b"##########"
"""Where a template's own value goes. Ten bytes, like every value: so a prefixed length stays true."""


@dataclass(frozen=True, kw_only=True)
class Requests:
    """An endless row of requests: each takes the next value, each round of the values the next template.

    `values` None: numbers of ten digits, counted from `start`, so that every request is a new person.
    """

    templates: tuple[bytes, ...]
    values: tuple[bytes, ...] | None = None
    place: bytes = PLACE

    def at(self, number: int) -> bytes:
        """The request with this number."""
        if self.values is None:
            return self.templates[0].replace(self.place, b"%010d" % number)
        lap, index = divmod(number, len(self.values))
        return self.templates[lap % len(self.templates)].replace(self.place, self.values[index])


@dataclass(frozen=True, kw_only=True)
class Load:
    """One run: `callers` who each wait for their answer, or with `rate` an open loop of so many calls a second."""

    protocol: str
    """grpc or http."""
    address: str
    requests: Requests
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """gRPC: the whole header list behind the pseudo headers that are always the same."""
    path: bytes = b""
    callers: int = 1
    seconds: float = 1.0
    calls: int | None = None
    """End after so many, whatever the time."""
    start: int = 0
    rate: float | None = None
    refusals: bool = False
    """Whether a refusal is what is wanted, and an answer a failure."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of it. Latencies in seconds: in an open loop counted from when the call was due."""

    latencies: list[float] = field(repr=False)
    failures: int
    seconds: float
    generator_seconds: float
    """CPU that the generator itself used for these calls."""
    next_start: int
    """Where the next run of the same requests goes on."""
