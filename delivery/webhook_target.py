"""Where a webhook may go: the URL taken apart once, its addresses judged before anything connects to them.

Special addresses: IANA special-purpose address registries (RFC 6890 and what was registered since).
"""

from __future__ import annotations

import ipaddress
import queue
import re
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast
from urllib.parse import quote

import idna

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolver = Callable[..., Sequence[tuple[Any, ...]]]
"""Called as `socket.getaddrinfo(host, port, type=SOCK_STREAM)` and answers like it."""

MAX_URL_CHARS = 2_000
NOT_ALLOWED = "The host is a private or otherwise special address, to which webhooks are not sent."

# Written out, and not left to `ipaddress.is_global` alone: its tables change with the patch level of Python.
_SPECIAL_IPV4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's host agent: a public address that every virtual machine there reaches
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
_GLOBAL_UNICAST_IPV6 = ipaddress.IPv6Network("2000::/3")
_SPECIAL_IPV6 = tuple(
    ipaddress.IPv6Network(text)
    for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")  # Teredo and ORCHID, examples, 6to4, examples
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_LOOPBACKS: tuple[Address, ...] = (ipaddress.IPv4Address("127.0.0.1"), ipaddress.IPv6Address("::1"))

_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<site>[^/?#]*)(?P<path>[^?#]*)(?P<query>\?[^#]*)?", re.I | re.A)
_SITE = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]]*)(?::(?P<port>[0-9]*))?")
_NOT_IN_A_URL = re.compile(r"[\x00-\x20\x7f-\xa0\\\u2028\u2029\ud800-\udfff]")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.A)
_IPV4_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*", re.A)
_KEPT_IN_A_PATH = "!$%&'()*+,-./:;=?@[]_~"


class BadWebhookUrl(ValueError):
    """The URL is not one that webhooks are sent to; the message is a sentence for the person who entered it."""


@dataclass(frozen=True, slots=True)
class WebhookTarget:
    """A webhook URL taken apart. Checking and connecting both use this, so they cannot read one URL in two ways.

    `host` is ASCII in lower case without brackets or a trailing dot; `path` includes the query and is ASCII.
    `literal` holds the addresses that the host itself spells (`localhost`: both loopbacks) and is empty for a name.
    """

    scheme: Literal["http", "https"]
    host: str
    port: int
    path: str
    literal: tuple[Address, ...]


def check_webhook_url(url: str, allowed_networks: Sequence[Network]) -> str | None:
    """A sentence that says what is wrong with this URL, or None. Names are not resolved: that is done at each send."""
    try:
        target = parse_webhook_url(url)
        if target.literal:
            _usable(target.literal, allowed_networks)
    except BadWebhookUrl as fault:
        return str(fault)
    return None


def parse_webhook_url(url: str) -> WebhookTarget:
    """Take a URL apart, whatever its host is. Raises BadWebhookUrl."""
    if len(url) > MAX_URL_CHARS:
        raise BadWebhookUrl(f"The URL is longer than {MAX_URL_CHARS:,} characters.")
    if _NOT_IN_A_URL.search(url):
        raise BadWebhookUrl("The URL holds a space, a backslash or a control character.")
    parts = _URL.match(url)
    if parts is None or parts["scheme"].lower() not in ("http", "https"):
        raise BadWebhookUrl("The URL must begin with http:// or https://.")
    scheme = cast(Literal["http", "https"], parts["scheme"].lower())
    if "@" in parts["site"]:
        raise BadWebhookUrl("The URL must not carry a user name or password.")
    site = _SITE.fullmatch(parts["site"])
    if site is None:
        raise BadWebhookUrl("The URL has no proper host and port.")
    host, literal = _host(site["host"])
    path = quote(parts["path"] or "/", safe=_KEPT_IN_A_PATH) + quote(parts["query"] or "", safe=_KEPT_IN_A_PATH)
    return WebhookTarget(scheme, host, _port(site["port"], scheme), path, literal)


def _port(text: str | None, scheme: str) -> int:
    if not text:
        return 443 if scheme == "https" else 80
    if len(text) > 5 or not 1 <= int(text) <= 65_535:
        raise BadWebhookUrl("The port must be a number from 1 to 65535.")
    return int(text)


def _host(text: str) -> tuple[str, tuple[Address, ...]]:
    """The host in ASCII and the addresses it spells."""
    if not text:
        raise BadWebhookUrl("The URL has no host.")
    if "%" in text:  # percent-encoding, or the zone of an IPv6 address: no receiver needs either
        raise BadWebhookUrl("The host must be written without percent signs.")
    if text.startswith("["):
        try:
            address = ipaddress.IPv6Address(text[1:-1])
        except ValueError:
            raise BadWebhookUrl("The host is not a proper IPv6 address.") from None
        return str(address), (address,)
    if not text.isascii():
        try:
            text = idna.encode(text, uts46=True).decode()
        except (idna.IDNAError, UnicodeError):
            raise BadWebhookUrl("The host is not a proper name.") from None
    host = text.lower().removesuffix(".")
    labels = host.split(".")
    if len(host) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise BadWebhookUrl("The host is not a proper name.")
    if labels[-1] == "localhost":  # RFC 6761: loopback, whatever a resolver says of it
        return host, _LOOPBACKS
    if not _IPV4_NUMBER.fullmatch(labels[-1]):
        return host, ()
    try:  # whatever ends in a number is an IPv4 address or nothing (WHATWG URL, "ends in a number")
        address_v4 = ipaddress.IPv4Address(socket.inet_aton(host))
    except OSError:
        raise BadWebhookUrl("The host is not a proper IPv4 address.") from None
    return str(address_v4), (address_v4,)


def permitted(address: Address, allowed_networks: Sequence[Network]) -> bool:
    """Whether a webhook may connect to this address: it is globally reachable, or an allowed network holds it.

    An IPv4 address inside an IPv6 one (mapped, NAT64) is judged by itself, as that is the host that answers.
    """
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    if any(address in network for network in allowed_networks):
        return True
    if address in _NAT64:
        address = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    if isinstance(address, ipaddress.IPv4Address):
        special = any(address in network for network in _SPECIAL_IPV4)
    else:
        special = address not in _GLOBAL_UNICAST_IPV6 or any(address in network for network in _SPECIAL_IPV6)
    return not special and address.is_global


def checked_addresses(
    target: WebhookTarget, allowed_networks: Sequence[Network], resolver: Resolver, timeout_seconds: float
) -> tuple[Address, ...]:
    """The addresses to connect to, in the resolver's order; the resolver is asked at most once.

    A name is refused when any one of its addresses is: such a name is an attack or a mistake, never a receiver.

    Raises:
        BadWebhookUrl: an address is not permitted.
        TimeoutError: the resolver took longer than `timeout_seconds`.
        OSError: the name cannot be resolved.
    """
    if target.literal:
        return _usable(target.literal, allowed_networks)
    found = _look_up(target, resolver, timeout_seconds)
    addresses = tuple(dict.fromkeys(ipaddress.ip_address(entry[4][0]) for entry in found))
    if not all(permitted(address, allowed_networks) for address in addresses):
        raise BadWebhookUrl(NOT_ALLOWED)
    return addresses


def _usable(literal: tuple[Address, ...], allowed_networks: Sequence[Network]) -> tuple[Address, ...]:
    usable = tuple(address for address in literal if permitted(address, allowed_networks))
    if not usable:
        raise BadWebhookUrl(NOT_ALLOWED)
    return usable


def _look_up(target: WebhookTarget, resolver: Resolver, timeout_seconds: float) -> Sequence[tuple[Any, ...]]:
    """Ask the resolver in a thread of its own: getaddrinfo has no timeout and a stranger's name server may stall it."""
    answers: queue.SimpleQueue[Sequence[tuple[Any, ...]] | OSError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(resolver(target.host, target.port, type=socket.SOCK_STREAM))
        except OSError as fault:
            answers.put(fault)

    threading.Thread(target=ask, name="webhook-name-lookup", daemon=True).start()
    try:
        answer = answers.get(timeout=timeout_seconds)
    except queue.Empty:
        raise TimeoutError("the name was not resolved in time") from None
    if isinstance(answer, OSError):
        raise answer
    return answer
