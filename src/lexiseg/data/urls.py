"""Pictures at http(s) addresses, fetched on request only: `lexiseg segment --allow-url`.

An address may come from somebody else, and lead into the network of this machine. Therefore connections to addresses that are
not public are refused, also after a redirect, unless they are allowed. The check is made on the open connection: the name
cannot resolve to something else in between.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import time
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    Request,
    UnknownHandler,
)

from lexiseg.errors import ImageError

LARGEST, TIMEOUT, DEADLINE = 100 * 2**20, 20.0, 120.0  # bytes; seconds without data, and in all
_BLOCK = 2**16


class _PrivateAddressError(OSError):
    """A connection to an address that is not public."""


def fetch_picture(address: str, *, private: bool = False) -> bytes:
    """Fetch the bytes of a picture from an http(s) address, see `fetch`; redirects to other http(s) addresses are followed."""
    return fetch(address, private=private, redirects=True, largest=LARGEST)


def fetch(
    address: str,
    *,
    private: bool,
    redirects: bool,
    largest: int,
    headers: Mapping[str, str] | None = None,
    content: bytes | None = None,
) -> bytes:
    """Fetch what an http(s) address answers. Proxies of the environment are not used.

    Args:
        address: the address.
        private: allow addresses that are not public: this machine's, and those of private networks.
        redirects: follow redirects, also to other hosts.
        largest: maximum bytes.
        headers: headers of the request.
        content: what is sent to it, if anything: the request is a POST then.

    Raises:
        ImageError: it cannot be fetched, has more bytes, takes longer than `DEADLINE`, or is not public.
    """
    shown = address[:200]
    deadline = time.monotonic() + DEADLINE
    try:
        if not urlsplit(address).hostname:
            raise ValueError("it has no host")
        with closing(
            _opener(private, redirects).open(Request(address, content, dict(headers or {})), timeout=TIMEOUT)
        ) as answer:
            data = bytearray()
            while block := answer.read(_BLOCK):
                data += block
                if len(data) > largest:
                    raise ImageError(f"{shown}: has more than {largest // 2**20} MB; download it, and give the file")
                if time.monotonic() > deadline:
                    raise ImageError(f"{shown}: takes longer than {DEADLINE:.0f} seconds; download it, and give the file")
    except HTTPError as error:
        error.close()
        raise ImageError(f"{shown}: the server answers {error.code}; check the address") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        cause = error.reason if isinstance(error, URLError) and isinstance(error.reason, Exception) else error
        if isinstance(cause, _PrivateAddressError):
            raise ImageError(f"{shown}: {cause}; --allow-private-url permits it") from None
        reason = " ".join(str(cause).split())[:200] or type(cause).__name__
        raise ImageError(f"{shown}: cannot be fetched ({reason}); check the address and the connection") from None
    return bytes(data)


def _opener(private: bool, redirects: bool) -> OpenerDirector:
    """An opener for http and https alone, whose connections are checked; urllib's own knows files and ftp, too."""

    def checked(kind: type[http.client.HTTPConnection], host: str, **options: Any) -> http.client.HTTPConnection:
        connection = kind(host, **options)
        connection._create_connection = partial(_connected, private=private)  # type: ignore[attr-defined]
        return connection

    class Http(HTTPHandler):
        def http_open(self, request: Request) -> http.client.HTTPResponse:
            return self.do_open(partial(checked, http.client.HTTPConnection), request)

    class Https(HTTPSHandler):
        def https_open(self, request: Request) -> http.client.HTTPResponse:
            return self.do_open(partial(checked, http.client.HTTPSConnection), request)

    opener = OpenerDirector()
    following = [HTTPRedirectHandler()] if redirects else []
    for handler in (Http(), Https(), *following, HTTPErrorProcessor(), HTTPDefaultErrorHandler(), UnknownHandler()):
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", "lexiseg")]
    return opener


def _connected(*arguments: Any, private: bool) -> socket.socket:
    """Open a connection, and close it if its other end is not public."""
    opened = socket.create_connection(*arguments)
    number = opened.getpeername()[0].partition("%")[0]
    if private or ipaddress.ip_address(number).is_global:
        return opened
    opened.close()
    raise _PrivateAddressError(f"leads to {number}, which is not a public address")
