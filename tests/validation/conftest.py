"""The story's example lead, and a service that accepts it."""

from __future__ import annotations

import pytest

from service.validation import ValidationService


@pytest.fixture(scope="session")
def service() -> ValidationService:
    return ValidationService()


@pytest.fixture
def fields() -> dict[str, str]:
    return {
        "name": "John Doe",
        "phone": "+1234567890",
        "nid": "123456789",
        "address": "12 Main Street, Dhaka",
        "interested_policy": "Health Insurance",
        "email": "john@example.com",
        "preferred_contact_time": "Morning",
        "notes": "Interested in a family plan",
        "conversation_id": "conv-123",
        "source": "facebook-ads / spring",
    }
