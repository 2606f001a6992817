"""SAM-MI's options."""

from __future__ import annotations

from typing import ClassVar, Literal

from lexiseg.backbones.mask_generator import MaskGeneratorOptions
from lexiseg.methods.base import check_heads
from lexiseg.methods.catseg.config import CatSegConfig
from lexiseg.ops.options import Natural, Unit, Width, options

MASK_PER_POINT = MaskGeneratorOptions(best_mask_per_point=True)  # thresholds of SAM's automatic generator  # [decided]
PointSampling = Literal["chance", "top", "grid", "random"]


@options(frozen=True)
class SamMiConfig(CatSegConfig):
    """Options of `SamMi`, beside those of CAT-Seg (Sec. 4.1)."""

    RUNTIME: ClassVar[frozenset[str]] = (CatSegConfig.RUNTIME - {"behaviour"}) | {
        "point_sampling", "num_random_points", "matching_threshold", "inject", "generator", "seed"
    }  # fmt: skip

    point_sampling: PointSampling = "chance"
    """Where SAM is asked (Sec. 3.2): at points of the prompter drawn by "chance", or its "top" ones; or, as without a
    prompter, on a "grid" or at "random" points."""
    num_random_points: Width = 41
    """Points of "random"."""
    matching_threshold: Unit | None = 0.5
    """α_sma of Sec. 3.3: fraction of a mask that has to lie in a class for it to join; None joins none."""
    inject: tuple[Literal["low", "high"], ...] = ("low", "high")
    """Halves of the injection that are done (Sec. 3.4)."""
    generator: MaskGeneratorOptions = MASK_PER_POINT
    """How SAM makes masks of the points."""
    prompter_dim: Width = 128
    """Channels of the prompter."""
    seed: Natural = 0
    """Seed of the points, at inference."""
    behaviour: Literal["paper"] = "paper"
    """SAM-MI has no official program whose behaviour could be repeated."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.prompter_dim, self.num_heads, "num_heads")
