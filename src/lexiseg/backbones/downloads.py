"""Download of published weights that are not on the Hugging Face hub: from an address, or from Google Drive.

Files appear under their name when they are whole and verified. An interrupted transfer is continued within the process; a
killed one starts again.
"""

from __future__ import annotations

import http.client
import time
from contextlib import closing
from pathlib import Path
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

from lexiseg.backbones.digests import add_digest, check_unchanged, digest_of, has_digest
from lexiseg.errors import WeightsError
from lexiseg.ops.files import replacing
from lexiseg.ops.progress import report

TIMEOUT, TRIES, PAUSE = 30.0, 5, 2.0  # seconds without data; transfers of a file; seconds between them
BLOCK = 2**20  # bytes read at a time
_RETRIED = {408, 425, 429, 500, 502, 503, 504}  # answers after which the next try may succeed


class _TransferError(Exception):
    """A transfer that will not succeed now, with the reason."""


def download(address: str, path: Path, *, digest: str | None = None) -> Path:
    """Download a file from an address, with a progress bar on a terminal.

    Args:
        address: http(s).
        path: the file to be written.
        digest: its SHA-256, or SHA-1 of the Git blob, if known.

    Raises:
        WeightsError: it cannot be downloaded, arrives damaged, or is not the file of its first download (`check_unchanged`).
        OutputError: it cannot be written.
    """
    with replacing(path) as temporary:
        try:
            _transfer(address, temporary, path.name)
        except _TransferError as failed:
            raise WeightsError(
                f"cannot fetch {address}: {failed}; try again, or download it on another machine and put it at {path}"
            ) from None
        _verify(address, temporary, digest)
    return path


def download_from_drive(file_id: str, path: Path, *, page: str) -> Path:
    """Download a file from Google Drive by the library gdown, which passes Drive's page about large files.

    Args:
        file_id: its id.
        path: the file to be written.
        page: its address for a browser.

    Raises:
        WeightsError: gdown is not installed, the file cannot be downloaded, or it is not that of its first download.
        OutputError: it cannot be written.
    """
    by_hand = f"open {page} in a browser and save the file as {path}"
    try:
        import gdown
    except ImportError:
        raise WeightsError(f"{path.name} is on Google Drive: 'pip install gdown' and try again, or {by_hand}") from None
    with replacing(path) as temporary:
        report("transfer")
        try:
            saved = gdown.download(id=file_id, output=str(temporary), quiet=False)
        except Exception as error:  # gdown's own, and those of requests
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise WeightsError(f"cannot fetch {path.name} from Google Drive ({reason}); {by_hand}") from None
        if saved is None or not temporary.is_file():
            raise WeightsError(f"cannot fetch {path.name} from Google Drive; {by_hand}")
        with temporary.open("rb") as file:
            if file.read(512).lstrip()[:1] == b"<":  # a page of Drive, such as that of an exceeded quota
                raise WeightsError(f"Google Drive sends a page in place of {path.name}; try again in a day, or {by_hand}")
        _verify(page, temporary, None)
    return path


def _verify(origin: str, file: Path, digest: str | None) -> None:
    """Compare a downloaded file with its digest and with the user's table, to which it is added."""
    size = file.stat().st_size
    if digest is not None and not has_digest(file, digest, size):
        raise WeightsError(f"{origin} arrives damaged: its digest is not {digest[:12]}…; try again, or check the proxy")
    sha256 = digest_of(file)
    check_unchanged(origin, sha256)
    add_digest(origin, sha256, size)


def _transfer(address: str, path: Path, name: str) -> None:
    """Write the content of an address to a file, in as many parts as the connection needs."""
    tag, total = "", None
    report("transfer")
    with path.open("wb") as file, tqdm(unit="B", unit_scale=True, unit_divisor=1024, desc=name, disable=None) as bar:
        for number in range(TRIES):
            headers = {"Range": f"bytes={file.tell()}-", "If-Range": tag} if file.tell() and tag else {}
            try:
                with closing(urlopen(Request(address, headers=headers), timeout=TIMEOUT)) as answer:
                    if answer.status != 206:
                        file.seek(0)
                        file.truncate()
                        bar.reset(_length(answer.headers.get("Content-Length")))
                        total = bar.total
                        tag = answer.headers.get("ETag", "")
                        tag = "" if tag.startswith("W/") else tag  # a weak tag does not stand for the same bytes
                    _copy(answer, file, bar)
                if total is None or file.tell() == total:
                    return
                reason = "the connection was lost during the download"
            except HTTPError as error:
                error.close()
                reason = f"the server answers {error.code} {error.reason}"
                if error.code not in _RETRIED:
                    raise _TransferError(reason) from None
            except (URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
                cause = getattr(error, "reason", error)
                reason = "the server does not answer in time" if isinstance(cause, TimeoutError) else f"{cause or 'no answer'}"
                if file.tell() == 0 and number == 0 and isinstance(error, URLError) and not isinstance(cause, TimeoutError):
                    raise _TransferError(f"the server cannot be reached ({cause})") from None
            if number + 1 < TRIES:
                time.sleep(PAUSE)
        raise _TransferError(reason)


def _copy(answer: IO[bytes], file: IO[bytes], bar: tqdm[None]) -> None:
    while block := answer.read(BLOCK):
        file.write(block)
        bar.update(len(block))


def _length(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None
