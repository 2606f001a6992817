"""Run the service in uvicorn: refuse what is unsafe, and end without losing an accepted request."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType

import uvicorn
from fastapi import FastAPI

from lexiseg.errors import RunError, UsageError
from lexiseg.serve.app import create_app
from lexiseg.serve.label_studio import Pictures
from lexiseg.serve.limits import Limits
from lexiseg.serve.logs import configure, log
from lexiseg.serve.models import Models
from lexiseg.serve.service import Service

KEPT_ALIVE = 5  # seconds that an idle connection stays open


def serve(
    models: Models,
    limits: Limits,
    *,
    host: str,
    port: int,
    token: str | None,
    insecure: bool,
    started: Callable[[str], None],
    label_studio: Pictures | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; accepted requests are answered before it returns, a second signal ends it at once.

    Args:
        models: the models offered.
        limits: the limits.
        host: address to listen at.
        port: port; 0 takes a free one.
        token: bearer token that requests must have, if any.
        insecure: serve other machines without a token.
        started: called with the page's address when the service listens and the default model is loaded.
        label_studio: as for `create_app`.

    Raises:
        UsageError: other machines could call the service without a token, or the address cannot be listened at.
        LexisegError: the default model cannot be loaded.
    """
    local = is_loopback(host)
    if not (local or token or insecure):
        raise UsageError(
            f"other machines could use the service at {host}: give a token (--token-file FILE, or LEXISEG_TOKEN), keep to "
            "--host 127.0.0.1, or add --insecure if everybody may use it"
        )
    listening = _listening(host, port)
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}/"
    configure()

    def app(service: Service) -> FastAPI:
        return create_app(service, token=token, any_host=not local, label_studio=label_studio)

    asyncio.run(_serve(models, limits, listening, app, lambda: started(address)))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listening(host: str, port: int) -> socket.socket:
    """Open a socket at the address.

    Raises:
        UsageError: that is not possible.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with ExitStack() as closing:
            listening = closing.enter_context(socket.socket(family, kind, protocol))
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            closing.pop_all()  # it stays open
    except OSError as error:
        raise UsageError(f"cannot listen at {host}, port {port} ({error.strerror}); choose another --host or --port") from None
    return listening


async def _serve(
    models: Models,
    limits: Limits,
    listening: socket.socket,
    app: Callable[[Service], FastAPI],
    started: Callable[[], None],
) -> None:
    service = Service(models, limits)
    server = _Server(configured(app(service)), service)
    running = asyncio.create_task(server.serve(sockets=[listening]))
    loaded = asyncio.create_task(service.loaded())
    await asyncio.wait({running, loaded}, return_when=asyncio.FIRST_COMPLETED)
    if service.failure is not None:
        server.should_exit = True
    elif loaded.done():
        log("ready", model=models.default)
        started()
    await running
    loaded.cancel()
    if service.failure is not None:
        raise service.failure
    if not server.started:
        raise RunError("the service could not be started; its log says why")


def configured(app: FastAPI) -> uvicorn.Config:
    """Return how uvicorn serves the application: HTTP alone, with logs of its own."""
    return uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, timeout_keep_alive=KEPT_ALIVE, ws="none", lifespan="on"
    )


class _Server(uvicorn.Server):
    """Ends in two steps: it refuses requests until the accepted ones are answered, and then closes its sockets."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service, self._loop = service, asyncio.get_running_loop()
        self._ending: asyncio.Task[None] | None = None  # else it could be collected while it runs

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end, or at the second signal end at once."""
        log("signal", number=sig, interrupted=frame is not None)
        if self._service.draining:
            self.force_exit = self.should_exit = True
        else:
            self._service.draining = True
            self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self._ending = self._loop.create_task(self._drain())

    async def _drain(self) -> None:
        log("draining", open=self._service.open)
        await self._service.drain()
        self.should_exit = True
