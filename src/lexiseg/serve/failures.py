"""Failures of requests: their statuses, and their reasons."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from fastapi import HTTPException
from pydantic import BaseModel
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from lexiseg.errors import ImageError, OutputError, UsageError, WeightsError, explained, is_no_memory, location
from lexiseg.serve.guard import FIELDS
from lexiseg.serve.jobs import StoppedError
from lexiseg.serve.logs import log
from lexiseg.serve.service import LeftError, Service

LEFT = 499  # status of requests whose client left, in logs and metrics
T = TypeVar("T")


class Reason(BaseModel):
    """Why a request was refused, or failed."""

    detail: str


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": Reason, "description": "The request is not valid HTTP"},
    401: {"model": Reason, "description": "The token is missing or wrong"},
    403: {"model": Reason, "description": "Called by a page of another site, or by another host name"},
    408: {"model": Reason, "description": "The body did not arrive in time"},
    413: {"model": Reason, "description": "More bytes, pixels, names or masks than the limits allow"},
    415: {"model": Reason, "description": "Neither multipart/form-data nor application/json"},
    422: {"model": Reason, "description": "Invalid values, or a picture that cannot be read"},
    429: {"model": Reason, "description": "All slots are taken; Retry-After says when to call again"},
    500: {"model": Reason, "description": "A fault of the service; its log has more under the request's X-Request-ID"},
    503: {"model": Reason, "description": "About to end, out of memory, or the model cannot be loaded"},
    504: {"model": Reason, "description": "Not finished in time"},
}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the entries of `ERRORS` with some statuses."""
    return {status: ERRORS[status] for status in statuses}


@contextmanager
def accepted(service: Service, scope: Scope) -> Iterator[float]:
    """Serve a request within the block: it has a slot, and its failures get a status.

    Yields:
        Its deadline, by `time.monotonic`.

    Raises:
        HTTPException: no slot is free (`Service.slot`), or the block has failed.
    """
    slot = service.slot()
    try:
        yield time.monotonic() + service.limits.seconds
    except Exception as error:
        raise as_http(error, service, scope) from None
    finally:
        slot.leave()


async def in_time(reading: Awaitable[T], deadline: float) -> T:
    """Read a body before the deadline.

    Args:
        reading: reads the body.
        deadline: time, by `time.monotonic`, at which it is given up.

    Raises:
        HTTPException: 408, the deadline has passed.
        LeftError: the client has left.
    """
    try:
        return await asyncio.wait_for(reading, max(0.0, deadline - time.monotonic()))
    except TimeoutError:
        raise HTTPException(408, "the request did not arrive in time", {"connection": "close"}) from None
    except ClientDisconnect:
        raise LeftError from None


def as_http(error: Exception, service: Service, scope: Scope) -> HTTPException:
    """Return the status and reason of an error. What concerns the machine of the service is logged, not answered."""
    if isinstance(error, HTTPException):
        return error
    if isinstance(error, LeftError):
        service.metrics.left.inc()
        return HTTPException(LEFT, "the client has left")
    if isinstance(error, StoppedError):
        return HTTPException(504, f"not finished within {service.limits.seconds:g} seconds")
    if isinstance(error, UsageError | ImageError):
        return HTTPException(422, str(error))
    if is_no_memory(error):
        return HTTPException(503, explained(error))
    identity = scope[FIELDS]["request"]
    # Other messages may have names of classes in them.
    reason = str(error) if isinstance(error, WeightsError | OutputError) else location(error)
    log("error", level=logging.ERROR, request=identity, error=type(error).__name__, reason=reason)
    if isinstance(error, WeightsError):
        return HTTPException(503, f"the model cannot be loaded; the log of the service says why (request {identity})")
    return HTTPException(500, f"a fault of the service; its log has more (request {identity})")
