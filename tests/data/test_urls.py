"""Pictures are fetched from addresses as far as that is allowed, and never from this machine's network by accident."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

import pytest

from lexiseg.data import urls
from lexiseg.data.images import as_pixels, find_images
from lexiseg.data.urls import fetch_picture
from lexiseg.errors import ImageError, UsageError
from lexiseg.ops.names import result_name
from tests.loopback import serving

PICTURE = b"a picture" * 1000
REDIRECTS = {"/moved": "/photo.jpg", "/file": "file:///etc/passwd", "/ftp": "ftp://127.0.0.1/x", "/loop": "/loop"}


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path in REDIRECTS:
            self.send_response(302)
            self.send_header("Location", REDIRECTS[self.path])
            self.end_headers()
        elif self.path == "/photo.jpg":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(PICTURE)
        else:
            self.send_error(404)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving(_Handler) as address:
        yield f"http://{address}"


def refused(address: str, *, private: bool = True) -> str:
    with pytest.raises(ImageError) as caught:
        fetch_picture(address, private=private)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_picture_is_fetched_also_after_a_redirect(server: str) -> None:
    assert fetch_picture(f"{server}/photo.jpg", private=True) == PICTURE
    assert fetch_picture(f"{server}/moved", private=True) == PICTURE


def test_addresses_of_this_machine_are_refused_unless_allowed(server: str) -> None:
    for host in ("127.0.0.1", "localhost"):
        address = f"{server.replace('127.0.0.1', host)}/photo.jpg"
        assert "leads to 127.0.0.1, which is not a public address; --allow-private-url permits it" in refused(
            address, private=False
        )


@pytest.mark.parametrize(
    ("path", "said"), [("/file", "is not allowed"), ("/ftp", "ftp"), ("/loop", "infinite loop"), ("/none.jpg", "answers 404")]
)
def test_redirects_lead_nowhere_else(server: str, path: str, said: str) -> None:
    message = refused(f"{server}{path}")
    assert said in message or "answers 302" in message


@pytest.mark.parametrize("address", ["http://", "https:///x", "http://127.0.0.1:1/x", "http://127.0.0.1:x/", "http://a b/"])
def test_addresses_that_are_none(address: str) -> None:
    assert refused(address).startswith(f"{address}: ")


def test_sizes_and_times_are_limited(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urls, "LARGEST", len(PICTURE) - 1)
    assert "has more than 0 MB" in refused(f"{server}/photo.jpg")
    monkeypatch.setattr(urls, "LARGEST", len(PICTURE))
    monkeypatch.setattr(urls, "DEADLINE", -1.0)
    assert "takes longer than" in refused(f"{server}/photo.jpg")


def test_addresses_are_only_taken_if_that_is_asked_for() -> None:
    address = "https://example.org/a/photo.jpg?x=1"
    with pytest.raises(UsageError, match="is an address: --allow-url fetches pictures"):
        find_images([address])
    assert find_images([address, address], urls=True) == [address]
    assert result_name(address).startswith("photo.jpg-")
    assert result_name("https://example.org/").startswith("picture-")
    with pytest.raises(ImageError, match=r"is an address; fetch it and give its bytes"):
        as_pixels(address)
