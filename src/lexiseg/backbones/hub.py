"""The Hugging Face hub: is a file here already, and if not, can the hub be reached at all."""

from __future__ import annotations

from pathlib import Path

from lexiseg.errors import WeightsError

PATIENCE = 10.0  # seconds for an answer


def expect_hub(repository: str, *files: str) -> None:
    """Find out soon whether files of a repository can be had; without a connection huggingface_hub tries for minutes.

    Raises:
        OSError: none of them is in the cache, and the hub does not answer.
    """
    from huggingface_hub import constants, get_session, try_to_load_from_cache  # heavy

    if constants.HF_HUB_OFFLINE or any(isinstance(try_to_load_from_cache(repository, file), str) for file in files):
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE)
    except Exception as error:  # of whatever HTTP library it uses
        raise OSError(f"{constants.ENDPOINT} does not answer ({error})") from error


def fetched(repository: str, file: str, advice: str) -> Path:
    """A file of a repository on this machine; it is fetched unless it is in the cache already.

    Raises:
        WeightsError: it cannot be had; ``advice`` says what to do offline.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        expect_hub(repository, file)
        return Path(hf_hub_download(repository, file))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"cannot fetch {file} of {repository}: {reason}. {advice}") from error
