"""Download of weights and configs from the Hugging Face hub, with verification of the files, and upload of folders.

    fetched("facebook/sam-vit-base", "config.json", advice="give a folder with it")    its path in the hub client's cache
    fetched("spaces/hamacojr/CAT-Seg-weights", "model_base.pth", advice="…")           a file of a Space
    upload(folder, "user/name", ["model.safetensors", "README.md"], message="…")       a commit to a repository

A file in the cache is used without a request, so a model does not change until the file is deleted. Files are verified by the
digest of the hub: SHA-256 of large files, git's SHA-1 of small ones (`lexiseg.backbones.digests`). A damaged file is
downloaded again. A large file that is not the one of its first download is refused.
"""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lexiseg.backbones.digests import SHA256, add_digest, check_unchanged, is_whole
from lexiseg.errors import OutputError, UsageError, WeightsError
from lexiseg.ops.files import is_file
from lexiseg.ops.progress import report

FETCHED = frozenset(
    {
        "card.json",  # ours
        "config.json",
        "model.safetensors",
        "open_clip_model.safetensors",
        "open_clip_pytorch_model.bin",
        "vocab.txt",
        "tokenizer.json",
        "model_base.pth",  # CAT-Seg's
        "model_large.pth",
    }
)
OWNED = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
"""Name of a repository with its owner."""
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_NO_ACCESS = {errno.EACCES, errno.EPERM, errno.EROFS}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelFiles:
    """Files of one kind of model, which lie in a folder or in a repository of the hub.

    Attributes:
        folder: such a folder, for messages: "a folder with SAM weights".
        files: what it needs, for messages: "config.json and model.safetensors".
        alternative: what may be given besides a folder, for messages.
    """

    folder: str
    files: str
    alternative: str = ""

    def in_folder(self, folder: Path, *names: str) -> Path:
        """Return the first of the files ``names`` that a folder has.

        Raises:
            WeightsError: it has none of them.
        """
        for name in names:
            if is_file(folder / name):
                return folder / name
        raise WeightsError(f"{folder} has no {' or '.join(names)}; {self.folder} needs {self.files}")

    def from_hub(self, repository: str, *names: str) -> Path:
        """Return the first of the files ``names`` that a repository has, see `fetched`."""
        alternative = f", or give {self.alternative}" if self.alternative else ""
        advice = f"put {self.files} of {repository} in a folder and give that folder{alternative}"
        return fetched(repository, *names, advice=advice)


def cached(repository: str, file: str, revision: str | None = None) -> Path | None:
    """Return the path of a repository's file in the hub client's cache, or None; makes no request.

    Args:
        repository, file: repository id and name of the file.
        revision: branch, tag or commit; None: main.
    """
    from huggingface_hub import try_to_load_from_cache  # heavy

    name, kind = _identity(repository)
    path = try_to_load_from_cache(name, file, repo_type=kind, revision=revision)
    return Path(path) if isinstance(path, str) else None


def fetched(repository: str, *files: str, advice: str, revision: str | None = None, max_bytes: int | None = None) -> Path:
    """Return the path of a repository's file, which is downloaded unless it is in the hub client's cache.

    Args:
        repository: repository id such as ``facebook/sam-vit-base``; that of a Space begins with ``spaces/``.
        files: names in `FETCHED`; the first that the repository has is used.
        advice: what to do without a connection; a clause of the error message.
        revision: branch, tag or commit; None: main.
        max_bytes: largest file that is downloaded; None: no limit.

    Raises:
        WeightsError: the file cannot be downloaded or verified, or is too large.
    """
    from huggingface_hub.errors import RemoteEntryNotFoundError  # heavy

    assert files
    assert FETCHED.issuperset(files)
    what, damaged = files[0], None
    try:
        for what in files:
            if (path := cached(repository, what, revision)) is not None:
                if is_whole(path):
                    return path
                damaged = path.resolve()
                return _download(repository, what, revision, max_bytes, path)
        for what in files[:-1]:
            with suppress(RemoteEntryNotFoundError):
                return _download(repository, what, revision, max_bytes)
        what = " or ".join(files)
        return _download(repository, files[-1], revision, max_bytes)
    except WeightsError:
        raise
    except Exception as error:  # the client may use any HTTP library
        raise failure(error, repository, what, advice, damaged) from error


def failure(error: BaseException, repository: str, what: str, advice: str, damaged: Path | None = None) -> WeightsError:
    """Build the error of a failed download by the hub client or a library that uses it.

    Args:
        error: error of the hub client, or one caused by it.
        repository: repository id.
        what: name or description of the file.
        advice: as for `fetched`.
        damaged: path of the damaged file in the cache, if there is one.
    """
    from huggingface_hub import constants  # heavy

    reason, offline = _reason(error, repository)
    if damaged is None:
        message = f"cannot fetch {what} of {repository}: {reason}"
    else:
        message = f"{damaged} is damaged, and {what} of {repository} cannot be fetched again: {reason}. Delete the damaged file"
    if offline:
        message += (
            f". Without a connection: {advice}; or copy a Hugging Face cache that has it to {constants.HF_HUB_CACHE}; or take "
            "a model that is in the package, such as sam_clip-tiny"
        )
    return WeightsError(message)


def _identity(repository: str) -> tuple[str, str | None]:
    """Split a repository as `fetched` takes it into the client's id and ``repo_type``."""
    return (repository.removeprefix("spaces/"), "space" if repository.startswith("spaces/") else None)


def _download(repository: str, file: str, revision: str | None, max_bytes: int | None, damaged: Path | None = None) -> Path:
    """Download a file, twice if it arrives damaged.

    Args:
        repository, file, revision, max_bytes: as for `fetched`.
        damaged: path of the damaged file in the cache, to be replaced.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url  # heavy

    with _warning_once():
        # This request gives the digest, and fails at once if the hub does not answer: the client's retries take minutes.
        name, kind = _identity(repository)
        address = hf_hub_url(name, file, repo_type=kind, revision=revision)
        stated = get_hf_file_metadata(address, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        expected, size = stated.etag, stated.size
        if max_bytes is not None and size is not None and size > max_bytes:
            raise WeightsError(f"{file} of {repository} has {size:,} bytes, more than {max_bytes:,}; look at what it is")
        sha256 = expected if expected is not None and SHA256.fullmatch(expected) else None
        origin = f"{repository}@{revision}/{file}" if revision else f"{repository}/{file}"
        if sha256:
            check_unchanged(origin, sha256)
        if damaged is not None:
            _log.warning("%s is damaged: its digest differs from the hub's; downloading it again", damaged.resolve())
        for _ in range(2):
            if damaged is not None:
                damaged.unlink(missing_ok=True)  # the client replaces the target of a link, but not a regular file
            again = damaged is not None
            path = Path(
                hf_hub_download(name, file, repo_type=kind, revision=revision, force_download=again, tqdm_class=_bar_class())
            )
            if is_whole(path, expected):
                if sha256:
                    add_digest(origin, sha256, path.stat().st_size)
                return path
            damaged = path
    for damaged in (path.resolve(), path):
        damaged.unlink(missing_ok=True)  # other programs read this cache, too
    raise WeightsError(
        f"{file} of {repository} arrives damaged: its digest differs from that of {constants.ENDPOINT}; try again, and "
        "if it persists, check whether a proxy changes files"
    )


def _bar_class() -> type[tqdm[Any]]:
    """The hub client's bar, which reports the stage "transfer" when it begins: up to then requests may take long."""
    from huggingface_hub.utils import tqdm as bar  # type: ignore[attr-defined]  # heavy

    context = copy_context()  # the client may begin it in another thread

    class Bar(bar):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            context.copy().run(report, "transfer")
            super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]

    return Bar


def kind_of_repository(repository: str, revision: str | None = None) -> tuple[str, str]:
    """Library and type of a model on the hub, as the hub states them; empty if it states none or cannot be asked."""
    from huggingface_hub import HfApi, constants  # heavy

    try:
        info = HfApi(endpoint=constants.ENDPOINT).model_info(
            repository, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT
        )
    except Exception:  # the client may use any HTTP library; the answer is for a message alone
        return "", ""
    config = info.config if isinstance(info.config, dict) else {}
    return str(info.library_name or "")[:60], str(config.get("model_type") or "")[:60]


def upload(
    folder: Path,
    repository: str,
    files: Sequence[str],
    *,
    message: str,
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Commit files of a folder to a repository of the hub, which is created if there is none.

    Args:
        folder: the folder.
        repository: repository id, ``user/name``.
        files: names of the files.
        message: commit message.
        private: whether a new repository is private; None: as is the default of its owner.
        token: token with write access; None: that of ``hf auth login`` or HF_TOKEN.

    Returns:
        The address of the commit.

    Raises:
        UsageError: there is no token, or ``repository`` is not the name of a repository.
        OutputError: the hub refuses the upload, or cannot be reached.
    """
    from huggingface_hub import HfApi, constants, get_token  # heavy
    from huggingface_hub.errors import HFValidationError

    if token is None and get_token() is None:
        raise UsageError("an upload needs a token of the hub: log in with 'hf auth login', set HF_TOKEN, or give token=")
    if not OWNED.fullmatch(repository):
        raise UsageError(f"'{repository}' is not the name of a repository, which is OWNER/NAME")
    client = HfApi(endpoint=constants.ENDPOINT, token=token)
    try:
        with _warning_once():
            client.create_repo(repository, private=private, exist_ok=True)
            commit = client.upload_folder(
                repo_id=repository, folder_path=folder, allow_patterns=list(files), commit_message=message
            )
    except HFValidationError as error:
        raise UsageError(f"'{repository}' is not the name of a repository, which is OWNER/NAME") from error
    except Exception as error:  # the client may use any HTTP library
        raise OutputError(f"cannot upload to {repository}: {_reason_of_upload(error, repository)}") from error
    return str(commit.commit_url)


@contextmanager
def _warning_once() -> Iterator[None]:
    """Log each message of the hub client once: not at every retry, nor again through the root logger's handlers."""
    client, logged = logging.getLogger("huggingface_hub"), set[str]()

    def new(record: logging.LogRecord) -> bool:
        text = re.sub(r"\d+", "", str(record.msg).partition("\n")[0])
        return not (text in logged or logged.add(text))  # type: ignore[func-returns-value]

    propagate, handlers = client.propagate, list(client.handlers)
    client.propagate = propagate and not handlers
    for handler in handlers:
        handler.addFilter(new)
    try:
        yield
    finally:
        client.propagate = propagate
        for handler in handlers:
            handler.removeFilter(new)


def _causes(error: BaseException) -> list[BaseException]:
    """An error and its causes, the last one first."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None and cause not in causes:
        causes.append(cause)
    return causes


def _reason_of_upload(error: BaseException, repository: str) -> str:
    """Return the reason of a failed upload, with the next step."""
    from huggingface_hub.errors import HfHubHTTPError  # heavy

    owner = repository.partition("/")[0]
    for cause in _causes(error):
        status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
        if status == 401:
            return "the hub does not accept your token; log in again with 'hf auth login', or give another token"
        if status in {403, 404}:
            return f"your token may not write there; take one with write access to {owner}, or an owner that is yours"
    if isinstance(error, ValueError) and "metadata in README.md" in str(error):
        return " ".join(str(error).split())
    return _reason(error, repository)[0]


def _reason(error: BaseException, repository: str) -> tuple[str, bool]:
    """Return the reason of a failed request with the next step, and whether working offline is an alternative."""
    for cause in _causes(error):
        if reason := _reason_of_hub(cause, repository) or _reason_of_connection(cause) or _reason_of_disk(cause):
            return reason
    return f"{(str(error).strip() or type(error).__name__).splitlines()[0]}; try again", True


def _reason_of_hub(error: BaseException, repository: str) -> tuple[str, bool] | None:
    from huggingface_hub import constants, errors  # heavy

    page = f"{constants.ENDPOINT}/{repository}"
    match error:
        case errors.HFValidationError():
            return "this is not the name of a repository, which is OWNER/NAME", False
        case errors.GatedRepoError():
            return f"it is gated; accept its licence at {page}, log in with 'hf auth login' and try again", False
        case errors.RemoteEntryNotFoundError():
            return f"there is no such file in it; look at {page}", False
        case errors.RevisionNotFoundError():
            return f"there is no such revision of it; look at {page}", False
        case errors.DisabledRepoError():
            return f"the hub has disabled it; look at {page}", False
        case errors.OfflineModeIsEnabled():
            return "HF_HUB_OFFLINE is set, so nothing is fetched", True
        case errors.FileMetadataError():
            return f"{constants.ENDPOINT} does not answer like a hub; check HF_ENDPOINT and the settings of your proxy", True
        case errors.HfHubHTTPError():
            return _reason_of_status(error.response.status_code, error.server_message or "", page)
    return None


def _reason_of_status(status: int, message: str, page: str) -> tuple[str, bool]:
    if status == 401 and "credentials" in message:
        return "the hub does not accept your token; log in again with 'hf auth login', or unset HF_TOKEN", False
    if status in {401, 404}:
        return f"there is no {page}, or it is private; check the name, and for a private one log in with 'hf auth login'", False
    if status == 403:
        return f"access to {page} is forbidden; log in with 'hf auth login' and a token that may read it", False
    if status == 429:
        return "the hub has had too many requests from here; wait some minutes, or log in with 'hf auth login'", False
    if status >= 500:
        return f"the hub is temporarily out of order (it answers {status}); try again later", True
    return f"the hub answers {status}; look at {page}", True


def _reason_of_connection(error: BaseException) -> tuple[str, bool] | None:
    from huggingface_hub import constants  # heavy

    kinds = {kind.__name__ for kind in type(error).__mro__}  # of httpx, which is called httpx2 in newer versions of the client
    if "TimeoutException" in kinds:
        waited = f"{constants.HF_HUB_ETAG_TIMEOUT} and {constants.HF_HUB_DOWNLOAD_TIMEOUT} seconds"
        return (
            f"{constants.ENDPOINT} does not answer in time; try again, or allow more than {waited} with HF_HUB_ETAG_TIMEOUT "
            "and HF_HUB_DOWNLOAD_TIMEOUT",
            True,
        )
    if kinds & {"ConnectError", "ProxyError", "UnsupportedProtocol"}:
        return f"{constants.ENDPOINT} cannot be reached ({error}); check the connection, HF_ENDPOINT and your proxy", True
    if "TransportError" in kinds:
        return "the connection was lost during the download; try again", True
    return None


def _reason_of_disk(error: BaseException) -> tuple[str, bool] | None:
    from huggingface_hub import constants  # heavy

    if not isinstance(error, OSError):
        return None
    where = error.filename or constants.HF_HUB_CACHE
    if error.errno in _NO_SPACE:
        return f"no space is left for {where}; free some, or set HF_HOME to a folder on another disk", False
    if error.errno in _NO_ACCESS:
        return f"no access to {where} ({error.strerror}); allow it, or set HF_HOME to a folder that can be written", False
    return None
