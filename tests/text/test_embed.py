"""Embedding a vocabulary: against a plain reference, in chunks, from the cache, and when the cache is broken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lexiseg.errors import UsageError
from lexiseg.text import ClassName, Vocabulary, cache_folder, embed_names, embed_vocabulary, fill, resolve_templates

VOCABULARY = Vocabulary.parse("dog, puppy, hound; sky; cat, kitten; lorry, vehicle; bus, vehicle")


class HashedClip:
    """A text tower of one random layer over the characters' codes; it keeps what it was asked."""

    identity = "hashed-clip/seed-0"

    def __init__(self) -> None:
        self.weight = torch.randn(96, 32, generator=torch.Generator().manual_seed(0)) / 9
        self.chunks: list[list[str]] = []

    def tokenize(self, texts: list[str]) -> Tensor:
        self.chunks.append(texts)
        codes = torch.zeros(len(texts), 96, dtype=torch.long)
        for row, text in enumerate(texts):
            codes[row, : len(text)] = torch.tensor([ord(letter) for letter in text][:96])
        return codes

    def encode_text(self, tokens: Tensor) -> Tensor:
        return functional.normalize((tokens.float() / 128).sin() @ self.weight, dim=-1)


def reference(name: str, templates: tuple[str, ...]) -> Tensor:
    clip = HashedClip()
    rows = torch.stack([clip.encode_text(clip.tokenize([fill(template, name)]))[0] for template in templates]).double()
    mean = (rows / rows.norm(dim=-1, keepdim=True)).mean(0)
    return mean / mean.norm()


@pytest.mark.parametrize("templates", ["none", "vild14", "imagenet"])
def test_rows_are_the_normalised_template_means(templates: str) -> None:
    embeddings = embed_vocabulary(HashedClip(), VOCABULARY, templates)
    assert embeddings.all_names == VOCABULARY.all_names
    order = list(reversed(range(len(VOCABULARY))))
    assert embeddings.select(order).all_names == VOCABULARY.select(order).all_names
    expected = torch.stack([reference(name, resolve_templates(templates)) for name in VOCABULARY.all_names])
    torch.testing.assert_close(embeddings.vectors.double(), expected, atol=1e-6, rtol=0)
    assert embeddings.class_index.tolist() == [0, 0, 0, 1, 2, 2, 3, 3, 4, 4]
    assert embeddings.names == ("dog", "sky", "cat", "lorry", "bus")
    assert embeddings.things.tolist() == [True, False, True, True, True]
    assert embeddings.seen is None


@pytest.mark.parametrize("chunk", [1, 5, 14, 17, 10_000])
def test_chunks_are_all_at_once(chunk: int) -> None:
    clip = HashedClip()
    rows = embed_vocabulary(clip, VOCABULARY, chunk=chunk).vectors
    torch.testing.assert_close(rows, embed_vocabulary(HashedClip(), VOCABULARY).vectors, atol=1e-6, rtol=0)
    assert max(map(len, clip.chunks)) == min(chunk, 9 * 14)


def test_a_name_in_two_classes_is_encoded_once() -> None:
    clip = HashedClip()
    rows = embed_vocabulary(clip, VOCABULARY, chunk=20).vectors
    prompts = [prompt for chunk in clip.chunks for prompt in chunk]
    assert len(prompts) == len(set(prompts)) == 9 * 14
    assert torch.equal(rows[7], rows[9])


def test_a_class_is_scored_by_its_best_name_so_naming_it_twice_changes_nothing() -> None:
    once = embed_vocabulary(HashedClip(), Vocabulary((ClassName("dog"), ClassName("sky"))))
    twice = embed_vocabulary(HashedClip(), Vocabulary((ClassName("dog", ("dog",)), ClassName("sky"))))
    image = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    scores = [embeddings.per_class(image @ embeddings.vectors.T) for embeddings in (once, twice)]
    torch.testing.assert_close(scores[0], scores[1], atol=1e-6, rtol=0)


def test_half_precision_towers_are_averaged_in_single() -> None:
    class HalfClip(HashedClip):
        def encode_text(self, tokens: Tensor) -> Tensor:
            return super().encode_text(tokens).half()

    rows = embed_vocabulary(HalfClip(), VOCABULARY).vectors
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(10), atol=1e-6, rtol=0)


def test_gradients_reach_a_text_tower_that_learns() -> None:
    clip = HashedClip()
    clip.weight.requires_grad_()
    rows = embed_names(clip, ["dog", "sky"], resolve_templates("vild14"), chunk=5)
    rows[0].sum().backward()
    assert clip.weight.grad is not None
    assert float(clip.weight.grad.abs().max()) > 0
    assert not embed_vocabulary(clip, VOCABULARY).vectors.requires_grad


def test_the_cache_returns_the_same_bits_without_asking_clip(tmp_path: Path) -> None:
    fresh = embed_vocabulary(HashedClip(), VOCABULARY, cache=tmp_path)
    clip = HashedClip()
    kept = embed_vocabulary(clip, VOCABULARY, cache=tmp_path)
    assert clip.chunks == []
    assert torch.equal(kept.vectors, fresh.vectors)
    assert [entry.suffix for entry in tmp_path.iterdir()] == [".safetensors"]


def test_the_cache_tells_clips_templates_names_and_their_order_apart(tmp_path: Path) -> None:
    class OtherClip(HashedClip):
        identity = "hashed-clip/seed-1"

    backwards = VOCABULARY.select(range(len(VOCABULARY))[::-1])
    embed_vocabulary(HashedClip(), VOCABULARY, cache=tmp_path)
    embed_vocabulary(OtherClip(), VOCABULARY, cache=tmp_path)
    embed_vocabulary(HashedClip(), VOCABULARY, "single", cache=tmp_path)
    embed_vocabulary(HashedClip(), backwards, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "other rows", "not finite", "folder"])
def test_a_damaged_cache_file_is_computed_anew(damage: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    expected = embed_vocabulary(HashedClip(), VOCABULARY, cache=tmp_path).vectors
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    if damage == "folder":
        path.unlink()
        path.mkdir()
    elif damage in ("other rows", "not finite"):
        save_file({"vectors": expected[:3].clone() if damage == "other rows" else expected * torch.nan}, path)
    else:
        path.write_bytes({"cut": content[:-100], "empty": b"", "text": b"hello" * 100}[damage])
    assert torch.equal(embed_vocabulary(HashedClip(), VOCABULARY, cache=tmp_path).vectors, expected)
    if damage != "folder":
        clip = HashedClip()
        embed_vocabulary(clip, VOCABULARY, cache=tmp_path)
        assert clip.chunks == []  # the file was repaired


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    blocked = embed_vocabulary(HashedClip(), VOCABULARY, cache=tmp_path / "file" / "text")
    assert torch.equal(blocked.vectors, embed_vocabulary(HashedClip(), VOCABULARY).vectors)


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("LEXISEG_CACHE", raising=False)
    assert cache_folder() == tmp_path / "xdg/lexiseg/text"
    monkeypatch.setenv("LEXISEG_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own/text"
    embed_vocabulary(HashedClip(), VOCABULARY, cache="default")
    assert len(list((tmp_path / "own/text").iterdir())) == 1


def test_an_empty_chunk_is_refused() -> None:
    with pytest.raises(UsageError, match="chunk is 0"):
        embed_vocabulary(HashedClip(), VOCABULARY, chunk=0)
