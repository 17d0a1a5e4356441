"""The table of routes: where each field of a request is."""

from __future__ import annotations

import pytest

from service.http.routes import ROUTES, WHOLE, Route

AS_ROUTES = pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.verb} {route.path}")


@AS_ROUTES
def test_a_row_names_fields_of_its_request(route: Route) -> None:
    named = {*route.in_path, *route.barred, *(name for name, _ in route.headers), *({route.body} - {"", WHOLE})}
    assert named <= set(route.method.input_type.fields_by_name)


@AS_ROUTES
def test_every_field_of_a_request_has_one_place(route: Route) -> None:
    # DELETE takes the same in the body and in the query.
    members = route.members if route.verb != "DELETE" else ()
    placed = [*route.in_path, *(name for name, _ in route.headers), *members, *route.query, *route.barred]
    assert sorted(placed) == sorted(route.method.input_type.fields_by_name)


def test_no_two_routes_answer_one_request() -> None:
    assert len({(route.verb, route.path) for route in ROUTES}) == len(ROUTES)
