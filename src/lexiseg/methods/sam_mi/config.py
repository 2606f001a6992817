"""Config of SAM-MI."""

from __future__ import annotations

from typing import ClassVar, Literal

from lexiseg.backbones.mask_generator import MaskGeneratorOptions
from lexiseg.layers.cost_aggregation import Embedding
from lexiseg.methods.base import check_heads
from lexiseg.methods.catseg.config import CatSegConfig
from lexiseg.ops.options import Natural, Unit, Width, options

MASK_PER_POINT = MaskGeneratorOptions(best_mask_per_point=True)  # thresholds of SAM's automatic generator  # [decided]
PointSampling = Literal["chance", "top", "grid", "random"]


@options(frozen=True)
class SamMiConfig(CatSegConfig):
    """Options of `SamMi`, in addition to those of CAT-Seg (Sec. 4.1)."""

    RUNTIME: ClassVar[frozenset[str]] = (CatSegConfig.RUNTIME - {"behaviour"}) | {
        "point_sampling", "num_random_points", "matching_threshold", "inject", "generator", "seed"
    }  # fmt: skip

    point_sampling: PointSampling = "chance"
    """Point prompts of SAM (Sec. 3.2): sampled from the prompter's probabilities ("chance"), its most probable points ("top"),
    or, without prompter, a "grid" or "random" points."""
    num_random_points: Width = 41
    """Number of points for "random"."""
    matching_threshold: Unit | None = 0.5
    """α_sma of Sec. 3.3: minimum fraction of a mask inside a class mask to be merged; None merges no masks."""
    inject: tuple[Literal["costs", "low", "high"], ...] = ("low", "high")
    """Where masks are injected (Sec. 3.4): at "low" and "high" frequencies into the guides, and into the "costs" themselves
    ("to inject M into S")."""
    cost_embedding: Embedding = "conv"
    """Embedding of the costs of each class: "conv", a 7 × 7 convolution as in CAT-Seg, whose framework Sec. 3.4 adopts; "mlp",
    of each cell (Sec. 3.1: "an MLP layer is adopted to embed S at each class")."""
    guide_values: bool = False
    """Whether the values of attention over space see the guide, too (Sec. 3.4: "to inject M into S"), and not queries and keys
    alone ("as a similarity measurement between different pixels").  # [decided]"""
    generator: MaskGeneratorOptions = MASK_PER_POINT
    """Options of SAM's mask generator."""
    prompter_dim: Width = 128
    """Channels of the prompter."""
    seed: Natural = 0
    """Seed of point sampling at inference."""
    behaviour: Literal["paper"] = "paper"
    """Only "paper": the authors have published no code."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.prompter_dim, self.num_heads, "num_heads")
