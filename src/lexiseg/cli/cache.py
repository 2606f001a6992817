"""``lexiseg cache list | clear [NAME …]``."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lexiseg.backbones.sources import SOURCES
from lexiseg.cli.streams import one_line
from lexiseg.cli.weights import confirmed, size_text
from lexiseg.errors import OutputError, UsageError
from lexiseg.ops.files import is_folder
from lexiseg.text.embed import cache_folder

OWN = {
    "text": "embeddings of names",
    "names": "official class lists",
    "hub": "records of verified files",
    "weights": "weights from other places than the hub, and the table of digests",
}


@dataclass(frozen=True)
class Entry:
    """Cached files.

    Attributes:
        name: folder of lexiseg's cache, or repository of the hub.
        content: what they are.
        folder: their folder.
    """

    name: str
    content: str
    folder: Path

    @property
    def size(self) -> int:
        """Bytes of all files; links are not followed."""
        return sum(path.lstat().st_size for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink())


def run(arguments: argparse.Namespace) -> int:
    """List the cached files, or delete them."""
    entries = list(_entries())
    if arguments.action == "list":
        _list(entries, as_json=arguments.json)
        return 0
    known = {entry.name: entry for entry in entries}
    if unknown := [name for name in arguments.names if name not in known]:
        raise UsageError(f"nothing called '{unknown[0]}' is cached; 'lexiseg cache list' shows what is")
    chosen = [known[name] for name in dict.fromkeys(arguments.names)] or entries
    total = sum(entry.size for entry in chosen)
    if chosen and not arguments.yes and not confirmed(f"Delete {', '.join(entry.name for entry in chosen)}?"):
        raise UsageError("nothing is deleted: give --yes")
    for entry in chosen:
        try:
            shutil.rmtree(entry.folder)
        except OSError as error:
            raise OutputError(f"cannot delete {entry.folder}: {error.strerror or error}; check its permissions") from None
    if arguments.json:
        print(json.dumps({"deleted": [entry.name for entry in chosen], "bytes": total}))
    else:
        print(f"deleted {size_text(total)}" if total else "nothing was cached")
    return 0


def _entries() -> Iterator[Entry]:
    """Folders of lexiseg's cache, and those of the hub client's with weights of its models."""
    for name, content in OWN.items():
        folder = cache_folder(name)
        if folder is not None and is_folder(folder):
            yield Entry(name, content, folder)
    from huggingface_hub import constants  # heavy
    from huggingface_hub.file_download import repo_folder_name

    for repository in sorted({source.repository for source in SOURCES.values() if source.repository}):
        kind = "space" if repository.startswith("spaces/") else "model"
        name = repo_folder_name(repo_id=repository.removeprefix("spaces/"), repo_type=kind)
        folder = Path(constants.HF_HUB_CACHE) / name
        if is_folder(folder):
            yield Entry(repository, "weights from the hub; other programs may use them, too", folder)


def _list(entries: list[Entry], *, as_json: bool) -> None:
    if as_json:
        fields = ({"name": entry.name, "bytes": entry.size, "folder": str(entry.folder)} for entry in entries)
        print(json.dumps(list(fields)))
        return
    width = max((len(entry.name) for entry in entries), default=0)
    for entry in entries:
        print(f"{entry.name:<{width}}  {size_text(entry.size):>8}  {one_line(str(entry.folder))}  ({entry.content})")
    if not entries:
        print("nothing is cached")
