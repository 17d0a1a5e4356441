from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from hypothesis import given
from hypothesis import strategies as st
from leadkeep.v1 import lead_service_pb2 as pb

from service.errors import LeadValidationError
from service.http.json_codec import fill, parse_object, parse_query, to_json
from service.rpc.call import SERVICE

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
NAMES = tuple(pb.ListLeadsRequest.DESCRIPTOR.fields_by_name)


@given(st.dictionaries(st.sampled_from(NAMES), JSON))
def test_whatever_is_given_is_set_or_refused_without_an_echo(fields: dict[str, object]) -> None:
    refused = _refused(lambda: fill(pb.ListLeadsRequest(), fields.items(), names=NAMES, whole="body"))
    assert set(refused) <= set(fields)


@pytest.mark.parametrize("method", list(SERVICE.methods), ids=lambda method: method.name)
def test_half_of_a_surrogate_pair_is_refused_in_every_field(method: MethodDescriptor) -> None:
    request = message_factory.GetMessageClass(method.input_type)
    for field in method.input_type.fields:
        value = {"id": "\ud800"} if field.name in ("lead", "refs") else "\ud800"
        sent = [value] if field.is_repeated else value
        with pytest.raises(LeadValidationError):
            fill(request(), [(field.name, sent)], names=[field.name], whole="body")


@given(st.text(st.sampled_from("0123456789-:.TZ+tz ٣"), min_size=1))
def test_a_time_is_read_or_refused(text: str) -> None:
    assert _refused(lambda: _set_time(text)) in ([], ["created_after"])


@pytest.mark.parametrize(
    "text",
    [
        *("0000-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59", "2026-01-31", "2026-01-31T09:00:00", "Z", "T+", "now"),
        *("2026-01-31T09:00:00+24:00", "2026-01-31T09:00:00+00:60", "2026-01-31T09:00:00+99:99", "2026-1-3T9:0:0Z"),
        *("2026-01-31T09:00:00+5:00", "2026-01-31T09:00:00.1_0Z", "2026-01-31T09:00:00.Z", "٢٠٢٦-01-31T09:00:00Z"),
    ],
)
def test_an_odd_time_is_refused(text: str) -> None:
    assert _refused(lambda: _set_time(text)) == ["created_after"]


@given(st.binary())
def test_any_bytes_are_an_object_or_refused(raw: bytes) -> None:
    assert _refused(lambda: parse_object(raw)) in ([], ["body"])


@given(st.binary())
def test_any_bytes_are_parameters_or_refused(raw: bytes) -> None:
    assert _refused(lambda: parse_query(raw)) in ([], ["query"])


def test_64_bit_integers_are_strings() -> None:
    assert b'"version":"9007199254740993"' in to_json(pb.Lead(version=9007199254740993))


def test_a_whole_number_may_have_a_fraction_of_zero() -> None:
    for text, read in ((b"5.0", 5), (b"1e2", 100), (b"-0.0", 0), (b"9007199254740991.0", 2**53 - 1)):
        request = pb.UpdateStatusRequest()
        fill(request, [("expected_version", json.loads(text))], names=["expected_version"], whole="body")
        assert request.expected_version == read


def test_a_number_that_may_have_been_rounded_is_refused() -> None:
    for text in (b"5.5", b"1e400", b"-1e400", b"9007199254740993.0", b"1e30"):
        with pytest.raises(LeadValidationError):
            fill(
                pb.UpdateStatusRequest(),
                [("expected_version", json.loads(text))],
                names=["expected_version"],
                whole="body",
            )


def _set_time(text: str) -> None:
    fill(pb.ListLeadsRequest(), [("created_after", text)], names=NAMES, whole="query")


def _refused(read: Callable[[], object]) -> list[str]:
    try:
        read()
    except LeadValidationError as error:
        return [violation.field for violation in error.violations]
    return []
