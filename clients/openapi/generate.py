"""`python -m clients.openapi.generate` writes the OpenAPI document anew, which the service serves."""

from __future__ import annotations

import json

from clients.openapi.document import document
from service.http.endpoint import DOCUMENT


def text() -> str:
    """The text of the document."""
    return json.dumps(document(), ensure_ascii=False, indent=1) + "\n"


if __name__ == "__main__":
    DOCUMENT.write_text(text())
