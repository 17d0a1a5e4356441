"""A client of Leadkeep: a channel that outlives a restart of the service, a token that is renewed, typed errors.

Copy this file into your program, and the stubs that README.md shows how to generate.
"""

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from leadkeep.v1.lead_service_pb2_grpc import LeadServiceStub

DEADLINE = 15  # seconds for all attempts of a call together: a restart of the service fits
POLICY = Path(__file__).parents[2] / "clients" / "policy"
MAY_BE_REPEATED = {
    row["reason"] for row in json.loads((POLICY / "reasons.json").read_text())["reasons"] if row["repeat"]
}
UNANSWERED = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
}


class LeadkeepError(Exception):
    """A call that failed. Its text and its attributes hold no value of a lead, so it may be logged."""

    def __init__(self, error: grpc.RpcError) -> None:
        """Read the details that the service adds to a status."""
        self.code: grpc.StatusCode = error.code()
        self.reason = ""  # empty: no answer of the service, but of the channel (connection, certificate, time)
        self.metadata: dict[str, str] = {}
        self.violations: list[tuple[str, str]] = []  # (field, reason)
        self.retry_after = 0.0  # seconds
        status = rpc_status.from_call(error)
        for detail in status.details if status else ():
            info, invalid, retry = (
                getattr(error_details_pb2, name)() for name in ("ErrorInfo", "BadRequest", "RetryInfo")
            )
            if detail.Unpack(info):
                self.reason, self.metadata = info.reason, dict(info.metadata)
            elif detail.Unpack(invalid):
                self.violations = [(each.field, each.reason) for each in invalid.field_violations]
            elif detail.Unpack(retry):
                self.retry_after = retry.retry_delay.ToTimedelta().total_seconds()
        # Whether the same request, with its request_id, may succeed later.
        self.repeat = self.reason in MAY_BE_REPEATED if self.reason else self.code in UNANSWERED
        super().__init__(f"{self.code.name} {self.reason or '(no answer of the service)'}")


class LeadkeepClient:
    """The channel, which lives as long as your program, and calls with a fresh token. Safe for use by many threads.

    `token` is asked for every call, so it may read a file that something else renews. `ca` turns TLS on; with `cert`
    and `key`, your own certificate, it is mutual.
    """

    def __init__(
        self, address: str, token: Callable[[], str], ca: Path | None, cert: Path | None, key: Path | None
    ) -> None:
        self._token = token
        options = [
            ("grpc.service_config", (POLICY / "retry_policy.json").read_text()),
            *json.loads((POLICY / "channel.json").read_text())["python"].items(),
        ]
        if ca is None:
            self._channel = grpc.insecure_channel(address, options)
        else:
            files = [file and file.read_bytes() for file in (ca, key, cert)]
            self._channel = grpc.secure_channel(address, grpc.ssl_channel_credentials(*files), options)
        self.leads = LeadServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def call(self, rpc: Callable[..., Any], request: Any, deadline: float = DEADLINE) -> Any:
        """Make a call, such as `client.call(client.leads.GetLead, request)`. Raises LeadkeepError.

        The channel repeats what may be repeated, within the deadline and as the service asks. Left to do here is what
        no library repeats: an answer that was cut in its midst, or a proxy's page of HTML in its place. And a token
        that had expired is read once more: whatever renews it may have done so meanwhile.
        """
        end = time.monotonic() + deadline
        renewed = False
        while True:
            try:
                return self._call(rpc, request, end - time.monotonic())
            except LeadkeepError as error:
                wait = random.uniform(0.5, 1.5)  # noqa: S311 # so that not all callers come at once
                if error.reason == "TOKEN_EXPIRED" and not renewed:
                    renewed = True
                elif error.reason or not error.repeat or time.monotonic() + wait > end:
                    raise
                else:
                    time.sleep(wait)

    def _call(self, rpc: Callable[..., Any], request: Any, deadline: float) -> Any:
        try:
            return rpc(request, timeout=deadline, metadata=[("authorization", f"Bearer {self._token()}")])
        except grpc.RpcError as error:
            raise LeadkeepError(error) from None
