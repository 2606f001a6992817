"""What every request passes: origin, token and size are checked, headers are added, the answer is counted and logged."""

from __future__ import annotations

import hmac
import logging
import secrets
import time
from base64 import b64decode
from collections.abc import Mapping
from urllib.parse import urlsplit

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lexiseg.errors import location
from lexiseg.serve.logs import log
from lexiseg.serve.metrics import Metrics

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
FIELDS = "lexiseg.fields"  # key of a scope: fields of the request's line in the log
HEADERS: Mapping[str, str] = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Guard:
    """ASGI middleware.

    Args:
        app: the application.
        token: token that requests must bear, except for the page and the health checks; None: no token.
        names: host names by which the service may be called; None: any. Without a token this keeps pages of other sites from
            reaching a service on loopback through a name of their own (DNS rebinding).
        public: paths that need no token.
        basic: paths of callers that know HTTP Basic only: the token may be its password, with any user name.
        body: maximum bytes of a request's body.
        metrics: counters.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None,
        names: frozenset[str] | None,
        public: frozenset[str],
        basic: frozenset[str],
        body: int,
        metrics: Metrics,
    ) -> None:
        self._app, self._token, self._names = app, token, names
        self._public, self._basic, self._body, self._metrics = public, basic, body, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, identity, status, received = time.monotonic(), secrets.token_hex(8), 0, 0
        scope[FIELDS] = {"request": identity}

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._body:
                raise HTTPException(413, f"the request is larger than {self._body:,} bytes")
            return message

        async def completed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers["x-request-id"] = identity
            await send(message)

        refusal = self._refusal(Headers(scope=scope), scope["path"])
        try:
            if refusal is None:
                await self._app(scope, limited, completed)
            else:
                await refusal(scope, limited, completed)
        except Exception as error:
            log("error", level=logging.ERROR, request=identity, error=type(error).__name__, reason=location(error))
            if status == 0:
                await _refused(500, f"a fault of the service; its log has more (request {identity})")(scope, receive, completed)
        finally:
            seconds = time.monotonic() - began
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, status).inc()
            self._metrics.request_seconds.labels(route).observe(seconds)
            line = {
                "method": scope["method"],
                "route": route,
                "status": status,
                "seconds": round(seconds, 4),
                "bytes": received,
            }
            log("request", **line, **scope[FIELDS])

    def _refusal(self, headers: Headers, path: str) -> JSONResponse | None:
        """The answer to a request that is not served."""
        host = headers.get("host", "")
        if self._names is not None and (urlsplit(f"//{host}").hostname or "") not in self._names:
            return _refused(403, "this service is called by another host name; without a token it answers on loopback only")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return _refused(403, "pages of other sites may not call this service")
        if self._token is not None and path not in self._public:
            given = _token(headers.get("authorization", ""), basic=path in self._basic)
            if not hmac.compare_digest(given, self._token.encode()):
                return _refused(401, "this service needs a token: Authorization: Bearer TOKEN", {"www-authenticate": "Bearer"})
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self._body:
            return _refused(413, f"the request is larger than {self._body:,} bytes", {"connection": "close"})
        return None


def _token(authorization: str, *, basic: bool) -> bytes:
    """The token in a header; empty if there is none. With ``basic`` it may be the password of HTTP Basic."""
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return given.strip().encode()
    if scheme.lower() == "basic" and basic:
        try:
            return b64decode(given, validate=True).partition(b":")[2]
        except ValueError:
            return b""
    return b""


def _refused(status: int, reason: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": reason}, status, headers)
