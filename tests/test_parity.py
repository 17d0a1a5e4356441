"""Lists that are kept in more than one place say the same."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any, get_args

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from google.protobuf.descriptor import Descriptor
from leadkeep.v1 import lead_service_pb2 as pb
from sqlalchemy import CheckConstraint, Table
from sqlalchemy.dialects.postgresql.base import ischema_names

import service
from service.errors import LeadkeepError, Reason
from service.lead import (
    CORRECTABLE_FIELDS,
    CUSTOMER_FIELDS,
    OPTIONAL_BY_SETTING,
    REQUIRED_FIELDS,
    SENSITIVE_FIELDS,
    Lead,
    LeadStatus,
    SealedLead,
)
from service.rpc.call import SERVICE
from service.rpc.servicer import LeadServicer
from service.rpc.status import CODES
from service.scopes import SCOPES, UNMASK_SCOPES
from service.storage import models, schema
from tests.harness.leads import MARKED, SENSITIVE, is_marked
from tests.harness.postgres import TestDatabase, TestServer

MIGRATIONS = Path(schema.__file__).parent / "migrations"

NOT_STORED = {
    "masked": "says how the answer shows the lead",
    "transcript_uri": "made of the conversation and a setting",
    "masked_fields": "likewise",
    "unreadable_fields": "known only when the lead is opened",
    "reference": "made of the id",
}
"""Fields of the contract's Lead that are no columns, and why."""

DECIDED_AT_THE_ENDPOINT = {"masked", "masked_fields", "reference"}
"""Fields of the contract's Lead that the domain's Lead does not know: masking happens behind it, and a reference is
another spelling of the id."""

NOT_SHOWN = {
    "phone_index": "blind index",
    "nid_index": "blind index",
    "phone_index_2": "blind index, while an index key is rotated and after it",
    "nid_index_2": "blind index, likewise",
    "email_index": "blind index",
    "index_epoch": "which plan the blind indexes follow",
    "request_id": "makes CreateLead safe to repeat",
    "content_digest": "tells a repeat from a request_id used again",
    "resubmitted_at": "a list is ordered by it",
    "phone_shared": "a person decided that the lead stands beside another one with this phone",
    "nid_shared": "the same for the nid",
}
"""Columns of a lead that no caller sees, and why."""


def fields_of(kind: type) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def marked(descriptor: Any) -> set[str]:
    return {field.name for field in descriptor.fields if is_marked(field)}


def columns_of(model: Table) -> set[str]:
    return set(model.columns.keys())


class TestFields:
    def test_the_contracts_lead_and_the_stored_lead_hold_the_same(self) -> None:
        contract = set(pb.Lead.DESCRIPTOR.fields_by_name)

        assert contract - set(NOT_STORED) == columns_of(models.lead) - set(NOT_SHOWN)

    def test_the_contracts_lead_and_the_domains_lead_hold_the_same(self) -> None:
        assert set(pb.Lead.DESCRIPTOR.fields_by_name) - DECIDED_AT_THE_ENDPOINT == fields_of(Lead)

    def test_the_exceptions_exist(self) -> None:
        assert set(NOT_STORED) | DECIDED_AT_THE_ENDPOINT <= set(pb.Lead.DESCRIPTOR.fields_by_name)
        assert set(NOT_SHOWN) <= columns_of(models.lead)

    def test_customer_fields_are_the_contracts_in_its_order(self) -> None:
        in_order = [field.name for field in pb.Lead.DESCRIPTOR.fields if field.name in CUSTOMER_FIELDS]

        assert in_order == list(CUSTOMER_FIELDS)

    @pytest.mark.parametrize("model", [models.lead, models.resubmission, models.lead_conflict])
    def test_customer_fields_are_columns_wherever_a_submission_is_stored(self, model: Table) -> None:
        columns = model.columns

        assert {name: columns[name].nullable for name in CUSTOMER_FIELDS} == {
            name: name not in REQUIRED_FIELDS or name in OPTIONAL_BY_SETTING for name in CUSTOMER_FIELDS
        }

    def test_a_sealed_lead_holds_what_is_stored(self) -> None:
        held = fields_of(SealedLead) - {"fields"} | set(CUSTOMER_FIELDS)

        assert held | set(NOT_SHOWN) == columns_of(models.lead)

    def test_the_contract_says_which_fields_can_be_corrected(self) -> None:
        source = (Path(service.__file__).parents[1] / "protos/leadkeep/v1/lead_service.proto").read_text()
        [named] = re.findall(r"// Which fields to set: ([a-z_, ]+)\.", source)

        assert tuple(named.split(", ")) == CORRECTABLE_FIELDS

    def test_the_statuses_are_the_contracts(self) -> None:
        contract = [name.removeprefix("LEAD_STATUS_") for name in pb.LeadStatus.keys()[1:]]

        assert [status.name for status in LeadStatus] == contract
        assert [status.value for status in LeadStatus] == [name.lower() for name in contract]


class TestSensitive:
    def test_the_contracts_sensitive_fields_are_the_storys(self) -> None:
        assert marked(pb.Lead.DESCRIPTOR) == MARKED

    def test_sealing_masking_and_storage_know_the_same_ones(self) -> None:
        assert set(SENSITIVE_FIELDS) == SENSITIVE

    def test_each_has_a_scope_but_for_the_conversation_which_follows_the_phone(self) -> None:
        assert set(UNMASK_SCOPES) == SENSITIVE - {"conversation_id"}

    @pytest.mark.parametrize("descriptor", pb.DESCRIPTOR.message_types_by_name.values(), ids=lambda d: d.name)
    def test_a_field_that_is_called_like_a_sensitive_one_is_sensitive_everywhere(self, descriptor: Descriptor) -> None:
        assert marked(descriptor) == MARKED & set(descriptor.fields_by_name)

    @pytest.mark.parametrize("model", [models.lead, models.resubmission, models.lead_conflict])
    def test_the_database_refuses_every_sensitive_column_in_clear(self, model: Table) -> None:
        [check] = [
            str(constraint.sqltext)
            for constraint in model.constraints
            if isinstance(constraint, CheckConstraint) and str(constraint.name).endswith("_sealed")
        ]

        # A trigger holds conversation_id to it, because a CHECK would also refuse changes of what is in clear yet.
        assert set(re.findall(r"strpos\((\w+),", check)) == SENSITIVE - {"conversation_id"}


class TestRpcs:
    def test_every_rpc_names_its_scopes(self) -> None:
        assert set(SCOPES) == {method.name for method in SERVICE.methods}
        assert all(SCOPES.values())

    def test_every_rpc_is_answered(self) -> None:
        assert all(callable(getattr(LeadServicer, method.name)) for method in SERVICE.methods)

    @pytest.mark.parametrize("rpc", SCOPES)
    def test_the_contract_says_which_scope_an_rpc_needs(self, rpc: str) -> None:
        source = (Path(service.__file__).parents[1] / "protos/leadkeep/v1/lead_service.proto").read_text()
        comment = source.partition(f"  rpc {rpc}(")[0].rpartition("\n\n")[2]

        assert all(f"`{scope.value}`" in comment for scope in SCOPES[rpc])


class TestErrors:
    def test_every_reason_has_a_status(self) -> None:
        assert set(CODES) == set(get_args(Reason))

    def test_every_reason_is_raised_by_an_error(self) -> None:
        def tree(kind: type[LeadkeepError]) -> set[type[LeadkeepError]]:
            return {kind}.union(*(tree(child) for child in kind.__subclasses__()))

        raised = {kind.__dict__.get("reason") for kind in tree(LeadkeepError)}
        by_what_was_met = {"DUPLICATE_PHONE", "DUPLICATE_NID"}

        assert set(get_args(Reason)) - raised == by_what_was_met


def catalogue(database: TestDatabase) -> dict[str, set[tuple[str, ...]]]:
    """What PostgreSQL knows of the schema, in its own words."""
    queries = {
        "columns": (
            "SELECT table_name, column_name, data_type, is_nullable, coalesce(column_default, ''), is_identity,"
            " coalesce(identity_generation, '') FROM information_schema.columns WHERE table_schema = 'public'"
        ),
        "constraints": (
            "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE connamespace = 'public'::regnamespace AND contype <> 'n'"
        ),
        "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    }
    with psycopg.connect(database.admin_url) as connection:
        return {
            kind: {tuple(row) for row in connection.execute(query.encode()) if row[0] != "alembic_version"}
            for kind, query in queries.items()
        }


class TestSchema:
    def test_the_revision_is_the_newest_migrations(self) -> None:
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))

        assert ScriptDirectory.from_config(config).get_heads() == [schema.REVISION]

    def test_the_migrated_database_is_at_that_revision(self, database: TestDatabase) -> None:
        with psycopg.connect(database.admin_url) as connection:
            found = connection.execute("SELECT version_num FROM alembic_version").fetchall()

        assert found == [(schema.REVISION,)]

    def test_alembic_finds_nothing_to_migrate(self, database: TestDatabase) -> None:
        engine = schema.engine_of(database.admin_url)
        ischema_names["xid8"] = models.TransactionId
        with engine.connect() as connection:
            context = MigrationContext.configure(
                connection, opts={"compare_type": True, "compare_server_default": True}
            )
            differences = compare_metadata(context, models.metadata)
        engine.dispose()

        assert differences == []

    @pytest.mark.parametrize("kind", ["columns", "constraints", "indexes"])
    def test_migrating_makes_what_the_models_declare(self, postgres_server: TestServer, kind: str) -> None:
        declared = postgres_server.empty_database()
        engine = schema.engine_of(declared.admin_url)
        models.metadata.create_all(engine)
        engine.dispose()

        migrated = catalogue(postgres_server.fresh_database())[kind]

        assert migrated
        assert migrated == catalogue(declared)[kind]
