"""Prompts of Grounding DINO: phrases of names, and prompts of as many whole phrases as the text encoder takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lexiseg.backbones.grounding_dino import CLS, DELIMITERS, SEP, STOP
from lexiseg.errors import UsageError

ENDS = 2  # tokens of every prompt besides its phrases: [CLS] and [SEP]


@dataclass(frozen=True)
class Prompt:
    """Consecutive phrases, each followed by a full stop: ``[CLS] a dog . a cat . [SEP]``.

    Attributes:
        tokens: L ids.
        first: index of its first phrase among all phrases.
        spans: (first token, token after the last) of each of its N phrases, without the full stop.
    """

    tokens: tuple[int, ...]
    first: int
    spans: tuple[tuple[int, int], ...]

    def positive_map(self) -> Tensor:
        """Tokens of each phrase, [N, L] bool."""
        positions = torch.arange(len(self.tokens))
        return torch.stack([(positions >= start) & (positions < stop) for start, stop in self.spans])


def phrase_of(name: str) -> str:
    """Return a name as Grounding DINO was trained to read it: lower case, single spaces.

    [decided] Full stops, question marks and underscores become spaces: the first two would end the phrase within the name.
    """
    return " ".join(name.lower().translate(str.maketrans("._?", "   ")).split())


def prompts_of(
    phrases: Sequence[str], tokenize: Callable[[str], list[int]], max_tokens: int, max_phrases: int | None = None
) -> list[Prompt]:
    """Split phrases into prompts of whole phrases, in order, each filled up before the next.

    Args:
        phrases: N phrases, see `phrase_of`.
        tokenize: phrase -> token ids.
        max_tokens: maximum number of tokens of a prompt, with those at both ends.
        max_phrases: maximum number of phrases in a prompt; None: no limit.

    Raises:
        UsageError: a phrase without tokens, or with more than a prompt takes.
    """
    parts: list[list[list[int]]] = []
    room = 0
    for phrase in phrases:
        ids = tokenize(phrase)
        if not ids:
            raise UsageError(f"the name '{phrase}' has no letter that Grounding DINO reads; write it with letters or digits")
        if len(ids) + 1 + ENDS > max_tokens:
            raise UsageError(
                f"the name '{phrase[:40]}' has {len(ids)} tokens; Grounding DINO takes {max_tokens - 1 - ENDS}: shorten it"
            )
        if len(ids) + 1 > room or len(parts[-1]) == max_phrases:
            parts.append([])
            room = max_tokens - ENDS
        parts[-1].append(ids)
        room -= len(ids) + 1
    prompts, first = [], 0
    for part in parts:
        tokens, spans = [DELIMITERS[CLS]], []
        for ids in part:
            spans.append((len(tokens), len(tokens) + len(ids)))
            tokens += [*ids, DELIMITERS[STOP]]
        prompts.append(Prompt((*tokens, DELIMITERS[SEP]), first, tuple(spans)))
        first += len(part)
    return prompts
