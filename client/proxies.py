"""The HTTP proxy that a node uses: Flower's HTTP client takes it from HTTPS_PROXY, ALL_PROXY and NO_PROXY."""

from __future__ import annotations

import ipaddress
from base64 import b64encode
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

#: Never reached through a proxy.
LOOPBACK = ("127.0.0.1", "localhost")


@dataclass(frozen=True, slots=True)
class Proxy:
    """One that is asked to CONNECT. `variable` is where its address stands."""

    scheme: str
    host: str
    port: int
    variable: str
    credentials: str | None = None

    @property
    def shown(self) -> str:
        """Without its password."""
        return f"{self.scheme}://{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """For the HTTP client, with its password. Never shown."""
        return f"{self.scheme}://{self.credentials + '@' if self.credentials else ''}{self.host}:{self.port}"

    @property
    def authorisation(self) -> str | None:
        """The header's value, where the address names an account."""
        if self.credentials is None:
            return None
        return "Basic " + b64encode(unquote(self.credentials).encode()).decode()


def proxy_for(host: str, environment: Mapping[str, str]) -> Proxy | None:
    """The proxy for HTTPS requests to `host`; None where there is none, or NO_PROXY names the host.

    A value that can't be read is a proxy with an empty host: nothing could be reached through it.
    """
    if _is_excepted(host, _first(environment, "no_proxy")[1]):
        return None
    for name in ("https_proxy", "all_proxy"):
        variable, value = _first(environment, name)
        if value:
            return _read(variable, value)
    return None


def except_this_machine(environment: MutableMapping[str, str]) -> None:
    """Add the loopback interface to NO_PROXY, in both spellings: a node, its executor and the own gateway speak over it."""
    _, known = _first(environment, "no_proxy")
    entries = [part.strip() for part in known.split(",") if part.strip()]
    value = ",".join(entries + [name for name in LOOPBACK if name not in entries])
    environment.update(NO_PROXY=value, no_proxy=value)


def _read(variable: str, value: str) -> Proxy:
    parts = urlsplit(value if "://" in value else f"http://{value}")
    account, _, _ = parts.netloc.rpartition("@")
    try:
        port = parts.port or {"https": 443, "socks5": 1080}.get(parts.scheme, 80)
    except ValueError:
        return Proxy(parts.scheme, "", 0, variable)
    return Proxy(parts.scheme, parts.hostname or "", port, variable, account or None)


def _first(environment: Mapping[str, str], name: str) -> tuple[str, str]:
    """The lower-case name counts before the upper-case one, even where it is empty (`urllib.request.getproxies`)."""
    variable = name if name in environment else name.upper()
    return variable, environment.get(variable, "")


def _is_excepted(host: str, no_proxy: str) -> bool:
    """As httpx 0.28 reads NO_PROXY: `*` is everything, an address or `localhost` itself, `.example.org` what is below it,
    `example.org` both. Ranges of addresses are not understood."""
    for entry in (part.strip().lower() for part in no_proxy.split(",")):
        if entry == "*":
            return True
        below = "." + entry.removeprefix(".")
        if entry and (host.lower() == entry or (not _is_one_machine(entry) and host.lower().endswith(below))):
            return True
    return False


def _is_one_machine(entry: str) -> bool:
    try:
        ipaddress.ip_address(entry)
    except ValueError:
        return entry == "localhost"
    return True
