"""Readers of the `.env` file, and of the values of settings, one function for each kind.

Each of the latter takes the text of a variable and returns the value, or raises ValueError, which names what is wrong
and what to write instead and never repeats the text.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shlex
import stat
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from urllib.parse import unquote, urlsplit
from zoneinfo import ZoneInfo

from dotenv import dotenv_values

from service.keys.secret_file import open_regular
from service.lead import OPTIONAL_BY_SETTING, LeadStatus
from service.scopes import Scope

_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")
_ORIGIN = (
    r"(?!http://[^/]*:80$|https://[^/]*:443$)https?://"
    r"(?:[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*|\[[0-9a-f:]+\])(?::[1-9][0-9]{0,4})?"
)
_DATABASE_URL = re.compile(r"postgres(?:ql)?://[^\s\x00-\x1f\x7f]+")


@dataclass(frozen=True, slots=True)
class Address:
    """Address on which an endpoint listens. As text it is `host:port`, an IPv6 host in brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def reachable(self, port: int) -> str:
        """The address to connect to when `port` is listened on: a wildcard host is reached on this machine."""
        return str(Address({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host), port))  # noqa: S104

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it. A host name other than localhost counts as reachable."""
        return _is_loopback(self.host)

    def clashes_with(self, other: Address) -> bool:
        """Whether both cannot be listened on at once. Port 0 is any free port and never clashes."""
        if self.port != other.port or self.port == 0:
            return False
        hosts = {"127.0.0.1" if address.host == "localhost" else address.host for address in (self, other)}
        return len(hosts) == 1 or not hosts.isdisjoint({"0.0.0.0", "::"})  # noqa: S104 # compared, not bound

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `host:port`."""
        found = re.fullmatch(r"(?:\[([^\[\]]*)\]|([^:\[\]]+)):([0-9]{1,5})", text)
        if found is None or int(found[3]) > 65535:
            raise ValueError(
                "not an address; write host:port with a port up to 65535, such as 127.0.0.1:50051, 0.0.0.0:50051 for "
                "every interface, or an IPv6 address in brackets, such as [::1]:50051"
            )
        in_brackets, host, port = found.groups()
        ip = _ip(in_brackets or host)
        # What looks like a number must be an IPv4 address: resolvers read 127.1 or 0177.0.0.1 in their own ways.
        name = host is not None and re.search("[A-Za-z]", host) and _HOST_NAME.fullmatch(host)
        if not name and (ip is None or ip.version != (4 if host else 6)):
            raise ValueError("the host is not an IP address or host name; write such as 127.0.0.1:50051")
        return cls((in_brackets or host).lower(), int(port))


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    ip = _ip(host)
    return host == "localhost" if ip is None else ip.is_loopback


def switch(text: str) -> bool:
    """Read 1 or 0."""
    words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if text.lower() not in words:
        raise ValueError("neither yes nor no; write 1 or 0")
    return words[text.lower()]


def number(kind: type[int] | type[float], lowest: int, highest: int) -> Callable[[str], float]:
    """Make a reader of numbers between two bounds, both included."""

    def read(text: str) -> float:
        with suppress(ValueError):
            if lowest <= (value := kind(text)) <= highest:  # refuses nan, too
                return value
        wanted = "whole number" if kind is int else "number"
        raise ValueError(f"not a {wanted} between {lowest} and {highest}; write one")

    return read


def one_of(*words: str) -> Callable[[str], str]:
    """Make a reader of one word out of a few, in any case."""
    spelling = {word.lower(): word for word in words}

    def read(text: str) -> str:
        if text.lower() not in spelling:
            raise ValueError(f"not known; write one of: {', '.join(words)}")
        return spelling[text.lower()]

    return read


def absolute(text: str) -> Path:
    """Read a path; a relative one starts at the working folder, `~` at the home folder."""
    if "\0" in text:
        raise ValueError("not a path; write one without NUL")
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:  # `~name` of nobody
        raise ValueError("the home folder is not known; write the path in full") from None


def command(text: str) -> str:
    """Read a command line that is run without a shell: words, quoted as a shell has them."""
    try:
        shlex.split(text)
    except ValueError:
        raise ValueError("not a command; a quote in it is not closed") from None
    return text


def readable_file(text: str) -> Path:
    """Read the path of a file that must be there."""
    path = absolute(text)
    if not path.is_file() or not os.access(path, os.R_OK):
        raise ValueError("there is no file that can be read; write the path of one (not its content)")
    return path


def folder(text: str) -> Path:
    """Read the path of a folder that must be there."""
    path = absolute(text)
    if not path.is_dir() or not os.access(path, os.R_OK | os.X_OK):
        raise ValueError("there is no folder that can be read; write the path of one")
    return path


def folder_to_be(text: str) -> Path:
    """Read the path of a folder that may be made later."""
    path = absolute(text)
    if path.exists() and not path.is_dir():
        raise ValueError("something else than a folder is there; write the path of a folder")
    return path


def database_url(text: str) -> str:
    """Read a PostgreSQL URL. libpq reads its parts: several hosts and every parameter of its own are allowed."""
    if not _DATABASE_URL.fullmatch(text):
        raise ValueError("not a PostgreSQL URL; write postgresql://user:password@host:5432/database")
    from service.storage.database.session import url_is_valid  # takes 100 ms: only who sets a URL pays for it

    if not url_is_valid(text):
        raise ValueError(
            "libpq cannot read this URL; write postgresql://user:password@host:5432/database?parameter=value with "
            "parameters and ports that libpq knows, and %XX for special characters in each part (%40 for @, %3D for =)"
        )
    return text


def jwks(text: str, *, plaintext_allowed: bool) -> str:
    """Read where the issuer's public keys are: an http(s) URL, or the path of a file, which is made absolute."""
    if "://" not in text:
        return str(readable_file(text))
    url = _web_url(text)
    if url is None:
        raise ValueError("not a web address; write an https:// URL or the path of a file")
    if url[0] == "http" and not _is_loopback(url[1]) and not plaintext_allowed:
        raise ValueError(
            "keys that come over http can be exchanged on the way; write an https:// URL, "
            "or set LEADKEEP_ALLOW_PLAINTEXT=1 where the network is trusted"
        )
    return text


def transcript_url(text: str) -> str:
    """Read the pattern of a transcript's URL."""
    if _web_url(text) is None or "{conversation_id}" not in text:
        raise ValueError(
            "not a pattern of web addresses; write such as https://chat.example/conversations/{conversation_id}"
        )
    return text


def _web_url(text: str) -> tuple[str, str] | None:
    """Return scheme and host of an http(s) URL, None when it is none."""
    if re.search(r"[\s\x00-\x1f\x7f]", text):
        return None
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        return None
    return (parts.scheme, parts.hostname) if parts.scheme in {"http", "https"} and parts.hostname else None


def region(text: str) -> str:
    """Read an ISO 3166 country whose phone numbers are known."""
    import phonenumbers  # takes 50 ms: only who sets a region pays for it

    if text.upper() not in phonenumbers.SUPPORTED_REGIONS:
        raise ValueError("not a country that phone numbers are known of; write two letters, such as BD")
    return text.upper()


def time_zone(text: str) -> str:
    """Read the name of a time zone."""
    try:
        return ZoneInfo(text).key
    # ZoneInfoNotFoundError is a KeyError; a name such as .. is a ValueError, a folder's an OSError.
    except (KeyError, ValueError, OSError):
        raise ValueError("no time zone has this name; write one of the IANA database, such as Asia/Dhaka") from None


def policies(text: str) -> tuple[str, ...]:
    """Read a list of names, one a line or separated by `;`: a comma may be part of a name."""
    names = tuple(dict.fromkeys(name.strip() for name in re.split(r"[;\n]", text) if name.strip()))
    if not names or max(map(len, names)) > 200:  # the limit of interested_policy: nobody could choose a longer one
        raise ValueError("not a list of names of up to 200 characters; write such as Term Life; Whole Life")
    return names


def words(pattern: str = ".+", fault: str = "") -> Callable[[str], tuple[str, ...]]:
    """Make a reader of words that are separated by blanks, commas or `;`, and that match a pattern."""

    def read(text: str) -> tuple[str, ...]:
        # As reasons are normalised, or a purpose with an accent would not be found in them.
        found = tuple(dict.fromkeys(re.split(r"[\s,;]+", unicodedata.normalize("NFC", text).strip(" \t\n,;"))))
        if not all(found):
            raise ValueError("names nothing; write one word or several, separated by blanks")
        if not all(re.fullmatch(pattern, word) for word in found):
            raise ValueError(fault)
        return found

    return read


origins = words(
    _ORIGIN,
    "not a list of origins as browsers send them: scheme and host in lower case, a port unless it is the "
    "scheme's own, no path and no *; write such as https://sales.example http://localhost:3000",
)
"""Reads the origins of web pages."""

purposes = words("[^:]+", "holds a colon, which ends the word in a reason; write such as callback complaint")
"""Reads the words that a reason begins with."""

optional_fields = words(
    "|".join(OPTIONAL_BY_SETTING),
    f"names a field that every lead has; write one or several of {', '.join(OPTIONAL_BY_SETTING)}",
)
"""Reads the fields that a lead need not have."""


def rules(pattern: str, fault: str) -> Callable[[str], tuple[str, ...]]:
    """Make a reader of rules `WORD=what it means`, one a line or separated by `;`, that match a pattern."""

    def read(text: str) -> tuple[str, ...]:
        entries = (" ".join(entry.split()) for entry in re.split(r"[;\n]", text) if entry.strip())
        found = tuple(re.sub(r" ?= ?(?=[^=]*$)", "=", entry) for entry in entries)
        is_each_once = len({rule.rpartition("=")[0] for rule in found}) == len(found)
        if not found or not is_each_once or not all(re.fullmatch(pattern, rule) for rule in found):
            raise ValueError(fault)
        return found

    return read


_SCOPE = "|".join(Scope)

scope_map = rules(
    rf"[^\s=]\S*=({_SCOPE})( ({_SCOPE}))*",
    f"not a list of words, each once, with scopes ({', '.join(Scope)}); write such as Leads.Read=leads:read",
)
"""Reads what the issuer's words mean: `Leads.Read=leads:read; Leads.Sales=leads:read leads:update`."""

retention = rules(
    rf"({'|'.join(LeadStatus)})=[1-9][0-9]{{0,4}} ?d",
    f"not a list of statuses ({', '.join(LeadStatus)}), each once, with days; write such as not_interested=90d",
)
"""Reads for how many days leads of a status are kept: `not_interested=90d; converted=3650d`."""


def without_secrets(text: str) -> str:
    """Return a URL with its password, and every parameter that may hold one, replaced by `***`."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        return text
    address, question, query = rest.partition("?")
    rest = address + question + "&".join(_without_secret(parameter) for parameter in query.split("&"))
    # Up to the last @, for a password may hold an unescaped one: better to hide too much than too little.
    credentials, at, location = rest.rpartition("@")
    user, colon, _ = credentials.partition(":")
    return f"{scheme}://{user}{colon and ':***'}{at}{location}"


def _without_secret(parameter: str) -> str:
    name, equals, value = parameter.partition("=")
    # libpq: password, sslpassword, oauth_client_secret, scram_client_key. A web address: token, key and the like.
    secret = re.search("password|secret|scram|token|api_?key", unquote(name), re.IGNORECASE)
    return f"{name}{equals}{'***' if secret else value}"


def read_env_file(path: Path) -> Mapping[str, str | None]:
    """The variables of a `.env` file, none when there is no file. Raises ValueError, which names what to do.

    It may name a command to run, so only root and this user decide what is in it. The folder is not looked at: what
    another user puts there belongs to that user, and so does a link.
    """
    try:
        with TextIOWrapper(open_regular(path), encoding="utf-8") as file:
            links = [link.lstat().st_uid for link in _links_of(path)]
            found = os.fstat(file.fileno())
            if {found.st_uid, *links} - {0, os.geteuid()}:
                fault = "belongs to another user than root and you, who could have any command run; make it your own"
            elif stat.S_IMODE(found.st_mode) & 0o022:
                fault = "may be written by others, who could have any command run; run: chmod go-w .env"
            else:
                # Without interpolation: a password with ${…} in it is that password.
                return dotenv_values(stream=file, interpolate=False)
    except (FileNotFoundError, IsADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError):
        fault = "cannot be read as UTF-8 text; correct or remove it"
    raise ValueError(fault)


def _links_of(path: Path) -> Iterator[Path]:
    while path.is_symlink():
        yield path
        path = path.parent / path.readlink()
