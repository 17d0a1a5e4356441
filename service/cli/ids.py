"""Ids that an operator types, checked before anything heavy is loaded or any database is asked."""

from __future__ import annotations

from uuid import UUID

import typer


def lead_id_of(text: str, argument: str) -> UUID:
    """A lead's id. Raises typer.BadParameter that names the argument."""
    try:
        return UUID(text)
    except ValueError:
        raise typer.BadParameter("must be a lead's id", param_hint=argument) from None
