"""Which addresses of the network may be watched: those of the public internet, each looked up once.

A server can reach what its viewers cannot: itself, its neighbours, the cloud's secrets. So a name is resolved here,
refused unless every answer is public, and what connects later is given the answer: another look-up could differ.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

from videochat_online.errors import InputError

DEFAULT_PORTS = {"http": 80, "https": 443, "rtsp": 554}

MAX_URL = 2000

UNICAST_6 = ipaddress.IPv6Network("2000::/3")
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
TEREDO = ipaddress.IPv6Network("2001::/32")
REFUSED_4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "192.0.0.0/24",  # older Pythons take most of it for public; a cloud's secrets are at 192.0.0.192
        "192.88.99.0/24",  # relays into IPv6
        "168.63.129.16/32",  # public by number, but inside of Azure the host's own services
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedUrl:
    """An address that was checked, and the only one to connect to.

    Attributes:
        scheme: "http", "https" or "rtsp".
        host: name as asked for, to be told to the server and compared with its certificate.
        port: TCP port, from 1.
        address: IP address to connect to.
        target: path and query, printable ASCII, beginning with "/".
    """

    scheme: str
    host: str
    port: int
    address: str
    target: str

    @property
    def netloc(self) -> str:
        """Host as a URL writes it, with the port unless it is the usual one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def check_url(url: str, *, resolve: Callable[..., Any] = socket.getaddrinfo) -> ResolvedUrl:
    """Check a URL and look its host up, once.

    Args:
        url: address that a stranger has given.
        resolve: function like `socket.getaddrinfo`; it may wait for as long as the system's resolver does.

    Raises:
        InputError: anything but a URL of http, https or rtsp; a user or password in it, an odd spelling of the host, a
            port of another service, an unknown host, or one that is not on the public internet, as a whole or in part.
    """
    scheme, host, port, target = _split(url)
    try:
        answers = resolve(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InputError(f"URL: expected a host that is known, found no address of {host}") from error
    addresses = [str(answer[4][0]) for answer in answers]
    if not addresses or not all(is_public(address) for address in addresses):
        # Which address it is remains untold: a viewer could map the server's own network.
        raise InputError(f"URL: expected a host on the public internet, found that {host} is not, or not only")
    return ResolvedUrl(scheme=scheme, host=host, port=port, address=addresses[0], target=target)


def is_public(address: str) -> bool:
    """Whether an IP address is one host's on the public internet, whatever it is wrapped in."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:  # with a zone, which only local addresses have, or nothing of the kind
        return False
    if isinstance(ip, ipaddress.IPv4Address):
        is_listed = any(ip in network for network in REFUSED_4)
        return ip.is_global and not ip.is_multicast and not ip.is_reserved and not is_listed
    if ip.scope_id is not None:
        return False
    wrapped = ip.ipv4_mapped or ip.sixtofour
    if ip in NAT64:
        wrapped = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    if wrapped is not None:
        return is_public(str(wrapped))
    return ip in UNICAST_6 and ip not in TEREDO and ip.is_global


def _split(url: str) -> tuple[str, str, int, str]:
    """Scheme, host, port and target."""
    if len(url) > MAX_URL:
        raise InputError(f"URL: expected at most {MAX_URL} characters, got {len(url)}")
    # Python's parser drops line ends and tabs, browsers take a backslash for a slash: two readings of one text.
    if re.search(r"[\x00-\x20\x7f-\x9f\\]", url):
        raise InputError("URL: expected one without spaces, controls and backslashes")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise InputError("URL: expected scheme://host/path, found something else") from error
    if parts.scheme not in DEFAULT_PORTS:
        raise InputError(f"URL: expected one of {', '.join(f'{name}://' for name in DEFAULT_PORTS)}, found another")
    if "@" in parts.netloc:
        raise InputError("URL: expected a host, found a user or a password in front of it, which are not taken")
    port = DEFAULT_PORTS[parts.scheme] if port is None else port
    if port < 1024 and port not in DEFAULT_PORTS.values():  # mail servers and their like read HTTP as commands
        raise InputError(f"URL: expected port 80, 443, 554 or one from 1024 on, got {port}")
    target = quote(parts.path or "/", safe="/%:=&~+!$,;'@()*")
    if parts.query:
        target += "?" + quote(parts.query, safe="/%:=&~+!$,;'@()*?")
    return parts.scheme, _check_host(host), port, target


def _check_host(host: str) -> str:
    """The host in ASCII; an address only in its usual spelling, without a zone."""
    try:
        if "%" not in host:
            return str(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        name = host.encode("idna").decode("ascii").lower()
    except UnicodeError as error:
        raise InputError("URL: expected a host name, found something else") from error
    if not re.fullmatch(r"(?=.{1,253}\.?$)([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_-]{1,63}\.?", name):
        raise InputError("URL: expected a host name, found something else")
    # 127.1, 2130706433, 0x7f000001, 0177.0.0.1: the system's resolver reads all of them as an address.
    if re.fullmatch(r"\d+|0x[0-9a-f]*", name.rstrip(".").rpartition(".")[2]):
        raise InputError(
            "URL: expected a host name, or an address such as 93.184.215.14, found another spelling of one"
        )
    return name
