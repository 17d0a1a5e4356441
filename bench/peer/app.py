"""Contender (c): FastAPI with synchronous endpoints, the SQLAlchemy ORM, Fernet on phone and NID, look-then-insert, one
commit a request, a pool of 20.

It gets every advantage that its readers would give it and some that they might forget: uvloop and httptools, keyed
digests with unique indexes to find duplicates by (Fernet's tokens cannot be searched), no tokens to check, no daily
file, no history beside the status. Run by `uvicorn --workers 1` in an environment of its own (requirements-peer.lock).
"""

from __future__ import annotations

import hashlib
import hmac
import os
from datetime import UTC, datetime

from cryptography.fernet import Fernet
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field
from sqlalchemy import DateTime, ForeignKey, create_engine, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

engine = create_engine(os.environ["DATABASE_URL"], pool_size=20, max_overflow=0)
make_session = sessionmaker(engine)
fernet = Fernet(os.environ["ENCRYPTION_KEY"])
index_key = os.environ["INDEX_KEY"].encode()
app = FastAPI()


class Base(DeclarativeBase):
    """The tables."""


class Lead(Base):
    """A lead as the story stores it."""

    __tablename__ = "leads"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    phone: Mapped[str]
    phone_digest: Mapped[bytes] = mapped_column(unique=True)
    nid: Mapped[str]
    nid_digest: Mapped[bytes] = mapped_column(unique=True)
    address: Mapped[str]
    interested_policy: Mapped[str]
    email: Mapped[str | None]
    preferred_contact_time: Mapped[str | None]
    notes: Mapped[str | None]
    conversation_id: Mapped[str | None] = mapped_column(index=True)
    status: Mapped[str] = mapped_column(default="new")
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), index=True)
    updated_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


class StatusChange(Base):
    """Status changes are tracked."""

    __tablename__ = "status_changes"

    id: Mapped[int] = mapped_column(primary_key=True)
    lead_id: Mapped[int] = mapped_column(ForeignKey("leads.id"), index=True)
    from_status: Mapped[str]
    to_status: Mapped[str]
    changed_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


Base.metadata.create_all(engine)


class NewLead(BaseModel):
    """The story's request."""

    name: str = Field(min_length=1, max_length=200)
    phone: str = Field(pattern=r"^\+[0-9]{7,15}$")
    nid: str = Field(min_length=4, max_length=32)
    address: str = Field(min_length=1, max_length=500)
    interested_policy: str = Field(min_length=1, max_length=200)
    email: str | None = Field(None, max_length=254)
    preferred_contact_time: str | None = Field(None, max_length=200)
    notes: str | None = Field(None, max_length=4000)
    conversation_id: str | None = Field(None, max_length=200)


class Created(BaseModel):
    """The story's response."""

    id: int
    message: str


class ShownLead(BaseModel):
    """A lead as it is read."""

    id: int
    name: str
    phone: str
    nid: str
    address: str
    interested_policy: str
    email: str | None
    preferred_contact_time: str | None
    notes: str | None
    conversation_id: str | None
    status: str
    created_at: datetime
    updated_at: datetime


class NewStatus(BaseModel):
    """The next status."""

    status: str = Field(pattern=r"^(new|contacted|converted|not_interested)$")


def digest(value: str) -> bytes:
    """By which equal values are found."""
    return hmac.digest(index_key, value.encode(), hashlib.sha256)


def shown(lead: Lead, *, unmask: bool) -> ShownLead:
    """Decrypt, and mask for those who may not see."""
    phone, nid = (fernet.decrypt(token.encode()).decode() for token in (lead.phone, lead.nid))
    if not unmask:
        phone, nid = ("*" * (len(value) - 4) + value[-4:] for value in (phone, nid))
    return ShownLead(
        id=lead.id,
        name=lead.name,
        phone=phone,
        nid=nid,
        address=lead.address,
        interested_policy=lead.interested_policy,
        email=lead.email,
        preferred_contact_time=lead.preferred_contact_time,
        notes=lead.notes,
        conversation_id=lead.conversation_id,
        status=lead.status,
        created_at=lead.created_at,
        updated_at=lead.updated_at,
    )


@app.post("/api/leads/", status_code=201)
def create_lead(new: NewLead) -> Created:
    """Save a lead, unless its phone or NID is known."""
    phone_digest, nid_digest = digest(new.phone), digest(new.nid)
    known = or_(Lead.phone_digest == phone_digest, Lead.nid_digest == nid_digest)
    with make_session() as session:
        if session.scalars(select(Lead).where(known).limit(1)).first():
            raise HTTPException(409, "a lead with this phone number or NID exists")
        now = datetime.now(UTC)
        lead = Lead(
            **new.model_dump(exclude={"phone", "nid"}),
            phone=fernet.encrypt(new.phone.encode()).decode(),
            phone_digest=phone_digest,
            nid=fernet.encrypt(new.nid.encode()).decode(),
            nid_digest=nid_digest,
            created_at=now,
            updated_at=now,
        )
        session.add(lead)
        try:
            session.flush()
            created = lead.id
            session.commit()
        except IntegrityError:
            raise HTTPException(409, "a lead with this phone number or NID exists") from None
        return Created(id=created, message="Lead created successfully")


@app.get("/api/leads/{lead_id}")
def get_lead(lead_id: int, unmask: bool = False) -> ShownLead:
    """One lead."""
    with make_session() as session:
        lead = session.get(Lead, lead_id)
        if lead is None:
            raise HTTPException(404)
        return shown(lead, unmask=unmask)


@app.get("/api/conversations/{conversation_id}/lead")
def get_lead_by_conversation(conversation_id: str) -> ShownLead:
    """The newest lead of a conversation."""
    newest = select(Lead).where(Lead.conversation_id == conversation_id).order_by(Lead.id.desc()).limit(1)
    with make_session() as session:
        lead = session.scalars(newest).first()
        if lead is None:
            raise HTTPException(404)
        return shown(lead, unmask=False)


@app.post("/api/leads/{lead_id}/status")
def update_status(lead_id: int, new: NewStatus) -> ShownLead:
    """Move a lead, and keep what it was."""
    with make_session() as session:
        lead = session.get(Lead, lead_id, with_for_update=True)
        if lead is None:
            raise HTTPException(404)
        if lead.status != new.status:
            now = datetime.now(UTC)
            session.add(StatusChange(lead_id=lead.id, from_status=lead.status, to_status=new.status, changed_at=now))
            lead.status, lead.updated_at = new.status, now
        answer = shown(lead, unmask=False)
        session.commit()
        return answer


@app.get("/api/leads/")
def list_leads(limit: int = 100) -> list[ShownLead]:
    """The newest leads."""
    newest = select(Lead).order_by(Lead.created_at.desc(), Lead.id.desc()).limit(limit)
    with make_session() as session:
        return [shown(lead, unmask=False) for lead in session.scalars(newest)]
