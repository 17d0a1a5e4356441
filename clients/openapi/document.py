"""The OpenAPI 3.1 document of the HTTP endpoint, made from the contract, its comments and the table of routes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import Descriptor, MethodDescriptor
from grpc_health.v1 import health_pb2

from clients.openapi import errors
from clients.openapi.comments import CONVENTIONS, PROTOS, comments
from clients.openapi.examples import REQUESTS, created
from clients.openapi.schemas import Json, Schemas, ref
from service.http.routes import ROUTES, TIMEOUT, WHOLE, Route
from service.rpc.call import REASON, REASON_BIN, SERVICE
from service.rpc.masking import can_show_values
from service.rpc.readiness import ReadinessReason
from service.scopes import SCOPES

_CHECK: Any = health_pb2.DESCRIPTOR.services_by_name["Health"].methods_by_name["Check"]
"""The other method that the endpoint answers."""

_PROJECT = Path(__file__).parents[2] / "pyproject.toml"

_OVER_HTTP = """

## Over HTTP

An rpc is found at `/leadkeep.v1.LeadService/RPC`, as the Connect protocol has it, and some at a route under `/api`,
where errors are RFC 9457 problem details. Both pass the chain of the gRPC endpoint: tokens, masks, limits, records.

JSON is protobuf's JSON with the contract's field names. In an answer every field is there, an empty text means "not
set", and 64-bit integers are strings. In a request an enum may be short (`contacted`), a name may be lowerCamelCase,
null means "not given", and an unknown name is refused. Metadata are headers. Fields with `x-sensitive` are those that
the contract marks as sensitive.

A request has at most 16 KiB of line and headers and 256 KiB of body. A caller that hangs up does not stop what was
begun."""


class _Document:
    """What the parts of a document are made with."""

    def __init__(self, protos: Path) -> None:
        self.comments = comments(protos)
        self.schemas = Schemas(self.comments)

    def route(self, route: Route) -> Json:
        """The operation at a route."""
        example = REQUESTS[route.rpc]
        described = self._operation(route.method, route.rpc, "Routes", *_CALL, _ref("Request-Timeout"))
        described["parameters"] = [
            *(self._parameter(route.method.input_type, name, "path", example) for name in route.in_path),
            *(self._parameter(route.method.input_type, name, "query", example) for name in route.query),
            *(self._header(route.method.input_type, name, header) for name, header in route.headers),
            *described["parameters"],
        ]
        if route.body:
            described["requestBody"] = self._body(route, example)
        described["responses"] = self._successes(route) | errors.responses(
            self._errors_of(route.method), has_body=bool(route.body), is_connect=False
        )
        return described

    def rpc(self, method: MethodDescriptor) -> Json:
        """The operation at the path of an rpc."""
        service = method.containing_service
        described = self._operation(
            method,
            f"{service.name}_{method.name}",
            service.name,
            *_CALL,
            _ref("Connect-Timeout-Ms"),
            _ref("Connect-Protocol-Version"),
        )
        described["requestBody"] = _json_body(self.schemas.request(method.input_type), REQUESTS[method.name])
        answer = self._answer(method, "SAVE_STATE_SAVED")
        described["responses"] = {
            "200": _success("OK", answer, "trailer-x-request-id", "trailer-leadkeep-retries"),
            **errors.responses(self._errors_of(method), has_body=True, is_connect=True),
        }
        return described

    def _operation(self, method: MethodDescriptor, operation_id: str, tag: str, *parameters: Json) -> Json:
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", method.name)
        scopes = SCOPES.get(method.name, ())
        return {
            "operationId": operation_id,
            "tags": [tag],
            "summary": words.capitalize(),
            "description": self.comments[method.full_name],
            "security": [{"token": [scope]} for scope in scopes],
            "parameters": [*parameters, *(_SHOWING if can_show_values(method.output_type) else ())],
        }

    def _errors_of(self, method: MethodDescriptor) -> list[str]:
        return [self.comments[CONVENTIONS], self.comments[method.full_name]]

    def _parameter(self, request: Descriptor, name: str, place: str, example: Json) -> Json:
        field = request.fields_by_name[name]
        schema = self.schemas.field(field, is_request=True)
        marked = {key: schema.pop(key) for key in ("x-sensitive",) if key in schema}
        given = {"example": example[name]} if name in example else {}
        # Empty, a parameter of a query counts as not given.
        rest = {"required": True} if place == "path" or self.schemas.is_required(field) else {"allowEmptyValue": True}
        return {
            "name": name,
            "in": place,
            "description": schema.pop("description"),
            "schema": schema,
            **rest,
            **given,
            **marked,
        }

    def _header(self, request: Descriptor, name: str, header: str) -> Json:
        schema = self.schemas.field(request.fields_by_name[name], is_request=True)
        return {
            "name": header,
            "in": "header",
            "description": f"`{name}`: {schema.pop('description')}",
            "schema": schema,
        }

    def _body(self, route: Route, example: Json) -> Json:
        request = route.method.input_type
        if route.body != WHOLE:
            schema = self.schemas.field(request.fields_by_name[route.body], is_request=True)
            return _json_body({"$ref": schema["$ref"]}, example[route.body])
        name = f"{route.rpc}Body"
        self.schemas.components[name] = self.schemas.members(request, route.members)
        given = {member: example[member] for member in route.members if member in example}
        return _json_body(ref("schemas", name), given, required=route.verb != "DELETE")

    def _successes(self, route: Route) -> Json:
        saved, delayed = route.success
        headers = ["x-request-id", "leadkeep-retries", *(["Location"] if saved == 201 else [])]
        if saved == delayed:
            return {str(saved): _success("OK", self._answer(route.method), *headers)}
        return {
            str(status): _success(
                self.comments[f"leadkeep.v1.SaveState.{state}"], self._answer(route.method, state), *headers
            )
            for status, state in ((saved, "SAVE_STATE_SAVED"), (delayed, "SAVE_STATE_DELAYED"))
        }

    def _answer(self, method: MethodDescriptor, state: str = "") -> Json:
        example = {"example": created(state)} if method.name == "CreateLead" else {}
        return {"schema": self.schemas.response(method.output_type), **example}


def document(protos: Path = PROTOS) -> Json:
    """The document, ready for JSON."""
    made = _Document(protos)
    paths: Json = {}
    for route in ROUTES:
        paths.setdefault(route.path.replace(":path}", "}"), {})[route.verb.lower()] = made.route(route)
    for method in (*SERVICE.methods, _CHECK):
        paths[f"/{method.containing_service.full_name}/{method.name}"] = {"post": made.rpc(method)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Leadkeep",
            "version": tomllib.loads(_PROJECT.read_text())["project"]["version"],
            "description": made.comments[CONVENTIONS] + _OVER_HTTP,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}],
        "tags": [
            {"name": "Routes", "description": "Paths and verbs for some of the rpcs."},
            {"name": "LeadService", "description": made.comments[SERVICE.full_name]},
            {"name": "Health", "description": "gRPC's health protocol."},
            {"name": "Operation", "description": "For probes, scrapers and generators of clients."},
        ],
        "paths": {**paths, **_OPERATION},
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
            "parameters": _PARAMETERS,
            "headers": _HEADERS,
            "responses": errors.components(),
            "schemas": dict(sorted((made.schemas.components | errors.SCHEMAS | {"Readiness": _READINESS}).items())),
        },
    }


def _success(description: str, content: Json, *headers: str) -> Json:
    return {
        "description": description,
        "headers": {name: ref("headers", name) for name in headers},
        "content": {"application/json": content},
    }


def _json_body(schema: Json, example: object, *, required: bool = True) -> Json:
    return {"required": required, "content": {"application/json": {"schema": schema, "example": example}}}


def _ref(parameter: str) -> Json:
    return ref("parameters", parameter)


def _open(operation_id: str, summary: str, answers: Json) -> Json:
    return {
        "get": {
            "operationId": operation_id,
            "tags": ["Operation"],
            "summary": summary,
            "security": [],
            "responses": answers,
        }
    }


def _json_answer(description: str, schema: Json) -> Json:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


_OPERATION: Json = {
    "/healthz": _open(
        "CheckLiveness",
        "Whether the process lives",
        {
            "200": _json_answer(
                "It does.",
                {"type": "object", "properties": {"alive": {"type": "boolean", "const": True}}, "required": ["alive"]},
            )
        },
    ),
    "/readyz": _open(
        "CheckReadiness",
        "Whether calls should be sent here",
        {
            "200": _json_answer("Yes; `degraded` and `reasons` say whether all is well.", ref("schemas", "Readiness")),
            "503": _json_answer("No: `reasons` says why not.", ref("schemas", "Readiness")),
        },
    ),
    "/metrics": _open(
        "GetMetrics",
        "Metrics in Prometheus' text format",
        {"200": {"description": "The metrics.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
    ),
    "/openapi.json": _open("GetDocument", "This document", {"200": _json_answer("The document.", {"type": "object"})}),
}

_HEADERS: Json = {
    name: {"description": description, "schema": {"type": "string"}}
    for name, description in {
        "x-request-id": "Names the call in the service's log: the caller's own, or made by the service.",
        "leadkeep-retries": "How many attempts went before this answer, the client's and the service's on its storage.",
        "trailer-x-request-id": "`x-request-id`, as Connect writes trailing metadata.",
        "trailer-leadkeep-retries": "`leadkeep-retries`, as Connect writes trailing metadata.",
        "Location": "The path of the lead.",
        "Retry-After": "Seconds after which to try again.",
        "WWW-Authenticate": "What is wrong with the token (RFC 6750).",
    }.items()
}

_PARAMETERS: Json = {
    name: {"name": name, "in": "header", "description": description, "schema": schema}
    for name, description, schema in (
        (
            "Request-Timeout",
            "How many seconds the caller waits, such as 2.5; when not given, 10 or what the operator has set.",
            {"type": "string", "pattern": f"^{TIMEOUT.pattern.pattern}$"},
        ),
        (
            "Connect-Timeout-Ms",
            "How many milliseconds the caller waits; when not given, 10 seconds or what the operator has set.",
            {"type": "string", "pattern": "^(?=.*[1-9])[0-9]{1,10}$"},
        ),
        (
            "Connect-Protocol-Version",
            "The version of the Connect protocol; may be left out.",
            {"type": "string", "enum": ["1"]},
        ),
        (
            "x-request-id",
            "Names the call in the service's log: at most 128 visible ASCII characters. Any other one is replaced.",
            {"type": "string"},
        ),
        (
            REASON,
            "Why values are looked at unmasked, for the access record; the operator may make it mandatory, or accept "
            "only certain words, alone or as in `WORD: text`. Write no customer data into it.",
            {"type": "string", "maxLength": 500},
        ),
        (
            REASON_BIN,
            f"The same, as base64 of UTF-8 text; not together with `{REASON}`.",
            {"type": "string", "contentEncoding": "base64"},
        ),
    )
}

_CALL = (_ref("x-request-id"),)

_SHOWING = (_ref(REASON), _ref(REASON_BIN))

_READINESS: Json = {
    "type": "object",
    "properties": {
        "ready": {"type": "boolean", "description": "Whether calls should be sent here."},
        "degraded": {"type": "boolean", "description": "Whether all is not well, though calls are answered."},
        "reasons": {
            "type": "array",
            "description": "Why not ready, or why degraded. Details: the service's log, `leadkeep doctor`.\n"
            + "\n".join(f"- `{reason}`: {reason.meaning}" for reason in ReadinessReason),
            "items": {"type": "string", "enum": list(ReadinessReason)},
        },
    },
    "required": ["ready", "degraded", "reasons"],
    "additionalProperties": False,
}
