"""An operator's database URL as SQLAlchemy reads it."""

from __future__ import annotations

from sqlalchemy import make_url


def sqlalchemy_url(url: str) -> str:
    """An operator's `postgresql://` URL, which names no driver, as SQLAlchemy's with psycopg 3.

    Several hosts (`postgresql://a,b/db`) are libpq's own notation; SQLAlchemy takes them as query arguments.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("postgresql", "postgres"):
        raise ValueError("a database URL starts with postgresql://")
    authority, slash, tail = rest.partition("/")
    credentials, at, hosts = authority.rpartition("@")
    if "," not in hosts:
        return f"postgresql+psycopg://{rest}"
    path, _, query = tail.partition("?")
    listed = "&".join(f"host={host}" for host in hosts.split(","))
    parsed = make_url(f"postgresql+psycopg://{credentials}{at}{slash}{path}?{query}&{listed}".replace("?&", "?"))
    return parsed.render_as_string(hide_password=False)
