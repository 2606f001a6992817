"""A stand-in for the Hugging Face hub on loopback: what its client asks for, and the ways in which a hub fails.

Uploads take the way of Git LFS, which the client goes without hf_xet: create, validate-yaml, preupload, the batch of LFS and
its storage, commit.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from tests.loopback import serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# What the hub answers instead of a file: status, X-Error-Code, what it says.
REFUSALS = {
    "mistyped": (401, "RepoNotFound", "Invalid username or password."),
    "not found": (404, "RepoNotFound", "Repository not found"),
    "old token": (401, "", "Invalid credentials in Authorization header"),
    "gated": (403, "GatedRepo", "Access to this model is restricted and you are not in the authorized list."),
    "gated, no token": (401, "GatedRepo", "Access to this model is restricted. You must have access to it."),
    "forbidden": (403, "", "Forbidden"),
    "closed": (403, "", "Access to this resource is disabled."),
    "no branch": (404, "RevisionNotFound", "Invalid rev id: main"),
    "too many": (429, "", "Too many requests"),
    "down": (503, "", "Service Unavailable"),
    "broken": (500, "", "Internal Error"),
    "odd": (418, "", "I am a teapot"),
}


@dataclass
class StandInHub:
    """Repositories and how they are served.

    Attributes:
        files: repository -> name -> content; those that Git LFS would hold are redirected to another host, as by the hub.
            Another revision than main is a repository of its own, ``someone/model@v1``.
        models: repository -> what the hub knows of it.
        token: what may write.
        owner: whose repositories it may write.
        created: what repositories were created with.
        stored: contents of large files that are uploaded, by SHA-256.
        refusal: key of `REFUSALS`, or "silent" (no answer), or "foreign" (no hub); empty for a hub that works.
        transfers: what happens to the next transfers of large files: "" (nothing), "cut" (the connection closes in the middle),
            "short" (half of it, and that is said to be all), "corrupted" (a byte is another), "stalled" (nothing comes).
        requests: method and path of every request for a file so far.
    """

    address: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    models: dict[str, dict[str, object]] = field(default_factory=dict)
    token: str = "hf_write"
    owner: str = "someone"
    created: list[dict[str, object]] = field(default_factory=list)
    stored: dict[str, bytes] = field(default_factory=dict)
    refusal: str = ""
    transfers: Iterator[str] = field(default_factory=lambda: iter(()))
    requests: list[tuple[str, str]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def fetched(self) -> list[str]:
        """Contents sent so far, by the name of the file."""
        return [path.rpartition("/")[2] for method, path in self.requests if method == "GET"]


def digest(content: bytes, *, large: bool) -> str:
    """What the hub calls a file: SHA-256 of large ones, git's SHA-1 of others."""
    return hashlib.sha256(content).hexdigest() if large else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(name: str) -> bool:
    """Whether Git LFS would hold a file."""
    return name.endswith((".safetensors", ".bin", ".pth"))


@contextmanager
def asked_hub(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[StandInHub]:
    """A stand-in that huggingface_hub asks, with empty caches in a folder."""
    with stand_in_hub() as hub:
        endpoint = f"http://{hub.address}"
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its server is not an HTTP service
        monkeypatch.setenv("LEXISEG_CACHE", str(folder / "lexiseg"))
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "localhost,127.0.0.1")
        huggingface_hub.close_session()
        yield hub
        huggingface_hub.close_session()


@contextmanager
def stand_in_hub() -> Iterator[StandInHub]:
    """A hub without repositories that serves until the end."""
    hub = StandInHub()

    class Handler(_Handler):
        pass

    Handler.hub = hub
    with serving(Handler) as hub.address:
        try:
            yield hub
        finally:
            hub.released.set()


class _Handler(BaseHTTPRequestHandler):
    hub: StandInHub

    def do_HEAD(self) -> None:
        with suppress(ConnectionError):  # the client has lost its patience
            self._answer()

    do_GET = do_HEAD  # noqa: N815

    def do_POST(self) -> None:
        """An upload: what the hub does with the parts of one."""
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.hub.refusal in REFUSALS:
            return self._refuse(*REFUSALS[self.hub.refusal])
        document = json.loads(content.partition(b"\n")[0])  # of a commit its first line
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if self.headers["Authorization"] != f"Bearer {self.hub.token}":
            return self._refuse(*REFUSALS["mistyped"])
        if self.path == "/api/repos/create":
            return self._create(document)
        if re.fullmatch(r"/.+\.git/info/lfs/objects/batch", self.path):
            href = f"http://{self.hub.address}/upload"
            objects = [{**entry, "actions": {"upload": {"href": f"{href}/{entry['oid']}"}}} for entry in document["objects"]]
            return self._json({"transfer": "basic", "objects": objects})
        asked = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", self.path)
        if asked is None or asked[1] not in self.hub.files:
            return self._refuse(*REFUSALS["not found"])
        if asked[2] == "commit":
            return self._commit(asked[1], [json.loads(line) for line in content.splitlines()])
        names = [file["path"] for file in document["files"]]
        modes = ["lfs" if is_large(name) else "regular" for name in names]
        files = [{"path": name, "uploadMode": mode, "shouldIgnore": False} for name, mode in zip(names, modes, strict=True)]
        return self._json({"files": files})

    def do_PUT(self) -> None:
        """A large file, which its address names."""
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.stored[self.path.rpartition("/")[2]] = content
        self._send(200, b"", {})

    def _create(self, asked: dict[str, object]) -> None:
        repository = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != self.hub.owner:
            return self._refuse(403, "", "You don't have the rights to create a model under this namespace")
        if repository in self.hub.files:
            return self._refuse(409, "", "You already created this model repo", url=f"http://{self.hub.address}/{repository}")
        self.hub.created.append(asked)
        self.hub.files[repository] = {}
        return self._json({"url": f"http://{self.hub.address}/{repository}"})

    def _commit(self, repository: str, lines: list[dict[str, dict[str, str]]]) -> None:
        """What a commit says, line by line: its header, small files themselves, large ones by their digests."""
        files = self.hub.files[repository]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
        self._json({"commitUrl": f"http://{self.hub.address}/{repository}/commit/{COMMIT}", "commitOid": COMMIT})

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        if "/resolve/" in self.path or "/storage/" in self.path:  # the client has questions of its own, too
            self.hub.requests.append((self.command, self.path))
        if stored := re.fullmatch(r"/storage/(.+)/([^/]+)", self.path):
            return self._store(self.hub.files[stored[1]][stored[2]])
        if self.hub.refusal == "silent":
            self.hub.released.wait()
        if self.hub.refusal == "foreign":
            return self._send(200, b"<html>Log in to this network</html>", {})
        if self.hub.refusal in REFUSALS:
            return self._refuse(*REFUSALS[self.hub.refusal])
        if model := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/.+)?", self.path):
            if model[1] not in self.hub.files:
                return self._refuse(*REFUSALS["mistyped"])
            return self._json({"id": model[1], **self.hub.models.get(model[1], {})})
        asked = re.fullmatch(r"/(.+)/resolve/([^/]+)/([^/]+)", self.path)
        if asked is None or asked[1] not in self.hub.files:
            return self._refuse(*REFUSALS["mistyped"])
        main = asked[2] == "main" or re.fullmatch("[0-9a-f]{40}", asked[2])
        repository = asked[1] if main else f"{asked[1]}@{asked[2]}"
        if repository not in self.hub.files:
            return self._refuse(*REFUSALS["no branch"])
        files, name = self.hub.files[repository], asked[3]
        if name not in files:
            return self._refuse(404, "EntryNotFound", "Entry not found")
        return self._file(repository, name, files[name])

    def _file(self, repository: str, name: str, content: bytes) -> None:
        """A small file itself, or where a large one is stored: on what is another host to the client."""
        tag = f'"{digest(content, large=is_large(name))}"'
        commit = hashlib.sha1(repository.encode()).hexdigest() if "@" in repository else COMMIT
        if not is_large(name):
            return self._send(200, content, {"ETag": tag, "X-Repo-Commit": commit})
        headers = {"X-Repo-Commit": commit, "X-Linked-Etag": tag, "X-Linked-Size": str(len(content))}
        host = self.hub.address.replace("127.0.0.1", "localhost")
        return self._send(302, b"", headers | {"Location": f"http://{host}/storage/{repository}/{name}"})

    def _store(self, content: bytes) -> None:
        fault, half = next(self.hub.transfers, ""), len(content) // 2
        if fault == "stalled":
            self.hub.released.wait()
        if fault == "short":
            return self._send(200, content[:half], {})
        if fault == "corrupted":
            content = content[:-1] + bytes([content[-1] ^ 1])
        begin = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(begin[1]) if begin else 0
        part = {"Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"} if begin else {}
        part["ETag"] = f'"{digest(content, large=True)}"'
        return self._send(206 if begin else 200, content[first:], part, sent=half if fault == "cut" else None)

    def _refuse(self, status: int, code: str, said: str, **further: str) -> None:
        headers = {"X-Error-Message": said} | ({"X-Error-Code": code} if code else {})
        headers["Content-Type"] = "application/json"
        self._send(status, json.dumps({"error": said, **further}).encode(), headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str], sent: int | None = None) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:sent])
