"""The Hugging Face hub: is a file here already, and if not, can the hub be reached at all."""

from __future__ import annotations

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
