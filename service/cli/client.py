"""Client of the running service, for commands that show or change leads.

The service masks, records and limits what they show, as for every caller.
"""

from __future__ import annotations

import getpass
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import typer
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest
from grpc_status import rpc_status
from leadkeep.v1 import lead_service_pb2 as pb
from leadkeep.v1.lead_service_pb2_grpc import LeadServiceStub

from service.cli.command import fields_to_show
from service.config import Settings
from service.errors import StartRefusedError
from service.keys.secret_file import read_secret_file
from service.rpc.tokens.local_key import LocalSigningKey
from service.scopes import UNMASK_SCOPES, Scope

TOKEN_VARIABLE = "LEADKEEP_TOKEN"  # noqa: S105 # the variable's name

TOKEN_LIFE = timedelta(hours=1)
"""How long a token of the local key is good: longer than any list takes to be read to its end."""

LARGEST_PAGE = 100
"""The largest page that the service answers, and the most matches that it takes in one call."""

DEADLINE_SECONDS = 30.0
"""How long one answer may take. No customer waits."""

Call = Callable[[str, Message], Any]
"""`call("EraseLead", request)` returns the response, or raises StartRefusedError with what the service answered."""


@contextmanager
def connected(settings: Settings, *scopes: Scope, reason: str = "") -> Iterator[Call]:
    """Call the service of these settings with LEADKEEP_TOKEN, else with a token of the local key for these scopes.

    Raises StartRefusedError without a token; typer.BadParameter for a reason of several lines.
    """
    if any(character < " " for character in reason):
        raise typer.BadParameter("must be one line of text", param_hint="--reason")
    token = given_token() or _local_token(settings, scopes)
    metadata: list[tuple[str, str | bytes]] = [("authorization", f"Bearer {token}")]
    if reason:
        from service.rpc.call import REASON_BIN  # loads the tasks and their log, which a list should not pay for

        # What is no UTF-8 in the argument stays that, for the service to refuse.
        metadata.append((REASON_BIN, reason.encode(errors="surrogateescape")))
    address = settings.grpc_address.reachable(settings.grpc_address.port)
    with _channel(settings, address) as channel:
        stub = LeadServiceStub(channel)

        def call(rpc: str, request: Message) -> Any:
            try:
                return getattr(stub, rpc)(request, metadata=metadata, timeout=DEADLINE_SECONDS)
            except grpc.RpcError as error:
                raise StartRefusedError(_refusal(error, address)) from None

        yield call


def pages(call: Call, rpc: str, request: Any) -> Iterator[Any]:
    """All responses of a list rpc."""
    while True:
        page = call(rpc, request)
        yield page
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


def listed(call: Call, rpc: str, request: Any, field: str) -> Iterator[Any]:
    """All messages of a list rpc; `field` holds them in each page."""
    for page in pages(call, rpc, request):
        yield from getattr(page, field)


def as_object(message: Message) -> dict[str, Any]:
    """A message as commands print it as JSON, with the contract's own names."""
    return dict(MessageToDict(message, preserving_proto_field_name=True))


def word(enum: EnumTypeWrapper, value: int) -> str:
    """A value of an enum of the contract, such as `not_interested` for LEAD_STATUS_NOT_INTERESTED."""
    prefix = enum.Name(0).removesuffix("UNSPECIFIED")
    return str(enum.Name(value)).removeprefix(prefix).lower()


def kept_lines(conflict_ids: Iterable[str]) -> list[str]:
    """What an erasure left, because others share it."""
    return [
        f"Kept: {each}, which shares only a phone or an NID. Decide: leadkeep conflicts resolve {each}"
        for each in conflict_ids
    ]


def showing(*, unmask: bool, reveal: str) -> tuple[dict[str, Any], list[Scope]]:
    """The fields of a request that say what it shows in clear, and the scopes for that. Raises typer.BadParameter."""
    fields = fields_to_show(unmask=unmask, reveal=reveal)
    if reveal:
        return {"reveal": FieldMask(paths=fields)}, [UNMASK_SCOPES[field] for field in fields]
    if unmask:
        return {"view": pb.LEAD_VIEW_FULL}, [Scope.UNMASK]
    return {"view": pb.LEAD_VIEW_MASKED}, []


def given_token(file: Path | None = None) -> str:
    """The token of `file`, else of LEADKEEP_TOKEN; empty when neither is given. Raises StartRefusedError.

    A token is never an argument: those can be read by every user of the machine.
    """
    text = read_secret_file(file).decode(errors="replace") if file else os.environ.get(TOKEN_VARIABLE, "")
    token = text.strip()
    if not (token.isascii() and token.isprintable()):
        raise StartRefusedError(f"{file or TOKEN_VARIABLE} holds no token")
    return token


def _local_token(settings: Settings, scopes: tuple[Scope, ...]) -> str:
    if settings.auth_jwks is not None:
        raise StartRefusedError(
            f"set {TOKEN_VARIABLE} to a token of the issuer of LEADKEEP_AUTH_JWKS with {' '.join(scopes)}"
        )
    if not settings.signing_key_path.exists():
        raise StartRefusedError(
            f"no service has run with {settings.data_dir} yet: start it with leadkeep serve, or set {TOKEN_VARIABLE}"
        )
    key = LocalSigningKey.load(settings.signing_key_path)
    return key.issue(f"cli:{getpass.getuser()}", scopes, TOKEN_LIFE, now=time.time())


def _channel(settings: Settings, address: str) -> grpc.Channel:
    # A proxy for the internet cannot reach a service of this machine.
    options: list[tuple[str, str | int]] = [("grpc.enable_http_proxy", 0)]
    if settings.tls_cert is None or settings.tls_key is None:
        return grpc.insecure_channel(address, options)
    from service.rpc.tls_files import certificate_to_trust

    certificate, name = certificate_to_trust(settings.tls_cert, settings.grpc_address.host)
    options.append(("grpc.ssl_target_name_override", name))
    if settings.tls_client_ca is None:
        return grpc.secure_channel(address, grpc.ssl_channel_credentials(certificate), options)
    own = settings.tls_client_cert
    chain, key = (own, own) if own is not None else (settings.tls_cert, settings.tls_key)
    credentials = grpc.ssl_channel_credentials(certificate, key.read_bytes(), chain.read_bytes())
    return grpc.secure_channel(address, credentials, options)


def _refusal(error: grpc.RpcError, address: str) -> str:
    assert isinstance(error, grpc.Call)  # noqa: S101 # every error of a stub is one
    status = rpc_status.from_call(error)
    if status is None:
        # The error is not from the service, which always sends details.
        return (
            f"the service does not answer at {address}: start it with leadkeep serve, or name where it listens in "
            f"LEADKEEP_GRPC_ADDRESS ({error.details()})"
        )
    invalid = BadRequest()
    for detail in status.details:
        detail.Unpack(invalid)
    return "; ".join(f"{each.field} {each.description}" for each in invalid.field_violations) or status.message
