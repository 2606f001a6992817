"""What a folder of results must be: every file whole, and the same as another run's."""

from __future__ import annotations

import csv
import io
import json
from hashlib import sha256
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import av
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load

from lexiseg.ops.locks import LOCK

TIMED = {"seconds", "images_per_second"}  # what differs between two runs of a training
APPENDED = "tensorboard"  # its writer has files of its own for each start


def files(folder: Path) -> dict[str, Path]:
    """The files of results below a folder by their names: without locks, and without temporary files."""
    every = (path for path in sorted(folder.rglob("*")) if path.is_file())
    kept = (path for path in every if path.name != LOCK and APPENDED not in path.parts and not _temporary(path, folder))
    return {path.relative_to(folder).as_posix(): path for path in kept}


def dates(folder: Path) -> dict[str, int]:
    """When the files were last changed."""
    return {name: path.stat().st_mtime_ns for name, path in files(folder).items()}


def temporary(folder: Path) -> list[Path]:
    """Temporary files below a folder, ours (``.….part``) or those of libraries (``.tmp…``)."""
    return [path for path in sorted(folder.rglob("*")) if _temporary(path, folder)]


def _temporary(path: Path, folder: Path) -> bool:
    return any(part.endswith(".part") or part.startswith(".tmp") for part in path.relative_to(folder).parts)


def damaged(folder: Path) -> list[str]:
    """The files that are not whole, each with the reason."""
    faults = []
    for name, path in files(folder).items():
        try:
            read(path)
        except Exception as error:  # whatever a reader raises of half a file
            faults.append(f"{name}: {type(error).__name__}: {error}")
    return faults


def digests(folder: Path) -> dict[str, str]:
    """What is in the files, without times."""
    return {name: sha256(repr(read(path)).encode()).hexdigest() for name, path in files(folder).items()}


def read(path: Path) -> Any:
    """The content of a file, if it is whole: bytes, where nothing in it depends on the time.

    Raises:
        Exception: it is not whole; ValueError for a kind of file that no command writes.
    """
    data = path.read_bytes()
    match path.suffix:
        case ".json" | ".geojson":
            document = json.loads(data)
            if path.name == "card.json":
                return {**document, "sha256": None}
        case ".jsonl":  # lines are appended; the last one may be cut short
            rows = [json.loads(line) for line in data.splitlines(keepends=True) if line.endswith(b"\n")]
            return [{name: value for name, value in row.items() if name not in TIMED} for row in rows]
        case ".mp4":
            with av.open(io.BytesIO(data)) as video:
                if not list(video.decode(video=0)):
                    raise ValueError("it has no frames")
        case ".xml":
            ElementTree.fromstring(data)
        case ".png" | ".jpg":
            Image.open(io.BytesIO(data)).load()
        case ".safetensors":  # the library puts what is told of the tensors in any order
            with safe_open(path, "pt") as opened:
                about = sorted((opened.metadata() or {}).items())
            return about, _plain(load(data))
        case ".pt" | ".pth":
            return _plain(torch.load(io.BytesIO(data), weights_only=True))
        case ".csv":
            rows_of_table = list(csv.reader(data.decode().splitlines(), strict=True))
            if len({len(row) for row in rows_of_table}) != 1 or not data.endswith(b"\n"):
                raise ValueError("its rows differ in length")
        case ".md" | ".txt" | ".yaml" | ".html" | "":
            if not data.endswith(b"\n"):
                raise ValueError("it ends within a line")
        case _:
            raise ValueError("no command writes such a file")
    return data


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), sha256(value.contiguous().reshape(-1).view(torch.uint8).numpy()).hexdigest()
    if isinstance(value, dict):
        return sorted((str(key), _plain(item)) for key, item in value.items() if key not in TIMED)
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
