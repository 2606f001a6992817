"""CMPF's two injectors of SAM features into the mask decoder.

    Eq. (5)   `QueryInjector`     x_l = E_p(pool_{M_l} F_sam), added to the queries after layers 3, 6, 9
    Eq. (6)   `FeatureInjector`   F_l = softmax(f_q(F_clip,l) f_k(F_sam)^T / sqrt(d_k)) f_v(F_sam), for layers 1, 4, 7

The paper does not specify the layer around Eq. (6). As in the official code, position and level embeddings are added to keys
and queries, a residual and a norm follow, and only one decoder layer uses the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.nn import functional

from lexiseg.ensembles import Behaviour
from lexiseg.layers.mask_decoder import CrossAttention, Memory, mask_pool
from lexiseg.layers.position import sine_positions


class QueryInjector(nn.Module):
    """Query Injector: add SAM features, pooled inside the mask of each query, to the query.

    Attributes:
        layers: decoder layers, from 1, after which it is applied: the sum is the input of the next layer, so after the last
            layer it has no effect.
    """

    def __init__(self, layers: Sequence[int] = (3, 6, 9), *, channels: int = 256, own_projection: int | None = None) -> None:
        """Build the injector.

        Args:
            layers: see `QueryInjector`.
            channels: channels of SAM's image embedding.
            own_projection: C of the decoder, for a separate E_p; None shares that of the classifier as in the official code,
                which requires ``channels`` = C.
        """
        super().__init__()
        self.layers = frozenset(layers)
        self.projection = (
            None if own_projection is None else nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, own_projection))
        )

    def forward(self, queries: Tensor, masks: Tensor, sam: Tensor, project: Callable[[Tensor], Tensor]) -> Tensor:
        """Update queries [B, Q, C] from their mask logits [B, Q, h, w] and SAM's embedding [B, C_sam, g, g]."""
        shared_or_own = project if self.projection is None else self.projection
        return queries + shared_or_own(mask_pool(sam, masks))  # Eq. (5)


class FeatureInjector(nn.Module):
    """Feature Injector: cross-attention from CLIP's features to SAM's.

    Attributes:
        layers: decoder layers, from 1, before which it is applied.
        behaviour: "official" removes the positions from the injected memory, and resizes SAM's map to CLIP's grid at inference
            only; "paper" keeps positions, and resizes in training, too.
    """

    def __init__(
        self,
        layers: Sequence[int] = (1, 4, 7),
        *,
        width: int = 256,
        heads: int = 8,
        behaviour: Behaviour = "paper",
    ) -> None:
        """Build one attention per layer, without shared parameters."""
        super().__init__()
        self.layers = frozenset(layers)
        self.behaviour = behaviour
        self.attentions = nn.ModuleDict({str(layer): CrossAttention(width, heads) for layer in sorted(self.layers)})

    def forward(self, layer: int, memory: Memory, sam: Tensor) -> Memory:
        """Inject the map [B, C, h', w'] of `SamFeatures` into the memory of a level."""
        if sam.shape[-2:] != memory.size and not (self.behaviour == "official" and self.training):
            sam = functional.interpolate(sam, memory.size, mode="bilinear", align_corners=False)
        assert memory.positions is not None, "the decoder's own levels have positions"
        sam_positions = sine_positions((sam.shape[2], sam.shape[3]), sam.shape[1], like=sam).flatten(2).mT
        sam_tokens = sam.flatten(2).mT + memory.level
        tokens = self.attentions[str(layer)](memory.tokens, memory.positions, sam_tokens, sam_positions)  # Eq. (6)
        return replace(memory, tokens=tokens, positions=None if self.behaviour == "official" else memory.positions)


@dataclass(frozen=True)
class SamInjection:
    """Both injectors with the SAM features of one batch, an `lexiseg.layers.mask_decoder.Injection`.

    Attributes:
        embedding: F_sam of Eq. (5), [B, C_sam, g, g]: SAM's image embedding, for the Query Injector.
        context: F_sam of Eq. (6), [B, C, h, w]: output of `SamFeatures`, for the Feature Injector; None without it.
        query, feature: the injectors; None disables one.
    """

    embedding: Tensor
    context: Tensor | None = None
    query: QueryInjector | None = None
    feature: FeatureInjector | None = None

    def features(self, layer: int, memory: Memory) -> Memory:
        if self.feature is None or layer not in self.feature.layers:
            return memory
        assert self.context is not None, "a Feature Injector needs the map of SamFeatures"
        injected: Memory = self.feature(layer, memory, self.context)
        return injected

    def queries(self, layer: int, queries: Tensor, masks: Callable[[], Tensor], project: Callable[[Tensor], Tensor]) -> Tensor:
        if self.query is None or layer not in self.query.layers:
            return queries
        injected: Tensor = self.query(queries, masks(), self.embedding, project)
        return injected
