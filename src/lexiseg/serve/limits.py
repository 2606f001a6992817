"""Limits of the service."""

from __future__ import annotations

from lexiseg.ops.options import Positive, PositiveFloat, options


@options(frozen=True)
class Limits:
    """What the service accepts, and keeps in memory. `lexiseg serve` has an option for each."""

    upload: Positive = 20_000_000
    """Maximum bytes of a picture, as uploaded."""
    pixels: Positive = 25_000_000
    """Maximum pixels of a picture."""
    names: Positive = 5_000
    """Maximum names of a request, synonyms included."""
    queue: Positive = 64
    """Requests accepted at a time: being uploaded, waiting, or computed. Further ones get 429."""
    batch: Positive = 8
    """Maximum pictures computed together; 1 computes them one by one."""
    batch_pixels: Positive = 8_000_000
    """Maximum pixels of a batch of several pictures, with their padding."""
    seconds: PositiveFloat = 300.0
    """Seconds from the acceptance of a request to its answer; then it gets 504, and its computation ends."""
    memory: Positive = 4_000_000_000
    """Bytes of weights kept in memory; the model that was not used for the longest time is dropped first."""

    @property
    def body(self) -> int:
        """Maximum bytes of a request: a picture in base64, and a million for everything else."""
        return self.upload * 4 // 3 + 1_000_000
