"""Who is calling, and what that caller may do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Scope(StrEnum):
    """A permission carried in a token's `scope` claim."""

    CREATE = "leads:create"
    READ_OWN = "leads:read-own"
    """Read what the same subject created."""
    READ = "leads:read"
    UPDATE = "leads:update"
    UPDATE_OWN = "leads:update-own"
    """Correct what the same subject created, for a while and as long as nobody else has changed it."""
    UNMASK = "leads:unmask"
    """See every sensitive field unmasked: all of those below."""
    UNMASK_PHONE = "leads:unmask:phone"
    UNMASK_NID = "leads:unmask:nid"
    UNMASK_EMAIL = "leads:unmask:email"
    UNMASK_ADDRESS = "leads:unmask:address"
    UNMASK_NOTES = "leads:unmask:notes"
    ERASE = "leads:erase"
    OPERATE = "leads:operate"
    PERSON = "leads:person"
    """Find, export and erase what is kept of a person; together with the scopes for what is shown or erased."""


UNMASK_SCOPES: dict[str, Scope] = {
    scope.rpartition(":")[2]: scope for scope in Scope if scope.startswith(f"{Scope.UNMASK}:")
}
"""The fields that `reveal` may name, and the scope of each."""

ROLES: dict[str, frozenset[Scope]] = {
    "chatbot": frozenset({Scope.CREATE, Scope.READ_OWN, Scope.UPDATE_OWN}),
    # Who must call can see the number.
    "agent": frozenset({Scope.READ, Scope.UPDATE, Scope.UNMASK_PHONE, Scope.UNMASK_EMAIL}),
    "admin": frozenset(Scope),
}
"""What `leadkeep token --role` puts into a token."""

READ_SCOPES: dict[str, tuple[Scope, ...]] = {
    "ValidateLead": (Scope.CREATE,),
    "GetLead": (Scope.READ, Scope.READ_OWN),
    "GetLeadByConversation": (Scope.READ, Scope.READ_OWN),
    "ListLeads": (Scope.READ, Scope.READ_OWN),
    "SummarizeLeads": (Scope.READ, Scope.READ_OWN),
    "ListStatusChanges": (Scope.READ,),
    "ListAssignments": (Scope.READ,),
    "ListLeadEvents": (Scope.READ,),
    "ListResubmissions": (Scope.READ,),
    "ListConflicts": (Scope.OPERATE,),
    "ListAccesses": (Scope.OPERATE,),
    "FindPerson": (Scope.PERSON,),
    "ExportPerson": (Scope.PERSON,),
}
"""The rpcs that change nothing, so that refusing their answer undoes them; scopes as in SCOPES."""

SCOPES: dict[str, tuple[Scope, ...]] = READ_SCOPES | {
    "CreateLead": (Scope.CREATE,),
    "UpdateStatus": (Scope.UPDATE,),
    "UpdateLead": (Scope.UPDATE, Scope.UPDATE_OWN),
    "AssignLead": (Scope.UPDATE,),
    "EraseLead": (Scope.ERASE,),
    "ErasePerson": (Scope.PERSON,),
    "ResolveConflict": (Scope.OPERATE,),
}
"""The scopes of which a caller needs one; the first is the one that an error names."""

MAX_SUBJECT_CHARACTERS = 200


def is_subject(value: object) -> bool:
    """Whether `value` can be a token's `sub`, the actor in history and audit: 1 to 200 visible characters.

    Line breaks, control and direction marks could forge a line of the audit, outer spaces a namesake.
    """
    return (
        isinstance(value, str)
        and 0 < len(value) <= MAX_SUBJECT_CHARACTERS
        and value.isprintable()
        and value == value.strip()
    )


@dataclass(frozen=True, slots=True)
class Caller:
    """The verified subject of a token (the actor in history and audit) and its scopes."""

    subject: str
    scopes: frozenset[Scope]

    def may(self, scope: Scope) -> bool:
        """Whether the token carries `scope`."""
        return scope in self.scopes

    @property
    def own_only(self) -> str | None:
        """The subject whose leads alone the caller may read; None for a caller who may read all."""
        return None if self.may(Scope.READ) else self.subject

    def may_unmask(self, field: str) -> bool:
        """Whether the caller may see a sensitive field unmasked."""
        return Scope.UNMASK in self.scopes or UNMASK_SCOPES[field] in self.scopes

    def may_read_lead_created_by(self, creator: str) -> bool:
        """Whether the caller may read a lead that the subject `creator` created."""
        return self.may(Scope.READ) or (self.may(Scope.READ_OWN) and creator == self.subject)

    def may_correct_lead_created_by(self, creator: str) -> bool:
        """Whether the caller may correct a lead that the subject `creator` created."""
        return self.may(Scope.UPDATE) or (self.may(Scope.UPDATE_OWN) and creator == self.subject)
