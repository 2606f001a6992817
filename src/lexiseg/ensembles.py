"""The OpenSeg Ensemble of CMPF (section 3.2.4): an ensemble of classes, which is FC-CLIP's, and one of masks.

    Eq. (8)-(11)  classify_masks      classify masks, the model's or SAM's, by the frozen CLIP
    Eq. (7)       geometric_mean      of the detector's and CLIP's probabilities; weight alpha for seen, beta for unseen classes
                  class_ensemble      the same for a prediction with "no object"
    Eq. (12)      mask_ensemble       weight epsilon of SAM's masks for unseen classes

All computation is in log space, so that no probability underflows. Where the paper and the official code differ,
``behaviour`` selects:

                       "paper"                                 "official"
    class_ensemble     as Eq. (7)                              plus 1e-8
    mask_ensemble      a SAM mask is kept if its best class    if its best unseen class is
    SAM's masks        inside or outside                       probabilities
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from lexiseg.backbones.clip_base import ClipBackbone, ClipFeatures
from lexiseg.errors import UsageError
from lexiseg.structures import MaskPrediction, TextEmbeddings

Behaviour = Literal["paper", "official"]

OFFICIAL_FLOOR = math.log(1e-8)  # the official code adds 1e-8 to every probability
STEEP = 1e4  # factor of mask logits: keeps zero crossings under interpolation, but makes probabilities 0 or 1


def classify_masks(
    clip: ClipBackbone, features: ClipFeatures, masks: Tensor, text: TextEmbeddings, void: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Classify masks by CLIP.

    Args:
        clip: the frozen CLIP.
        features: of the images, from ``clip.features``.
        masks: logits [B, Q, h, w] over the area of the features; resized to their grid and thresholded at 0, Eq. (2).
        text: K classes.
        void: [D] vector of "no object", an additional class.

    Returns:
        Log-probabilities [B, Q, K], or [B, Q, K + 1] with ``void``; and [B, Q] bool, True where a mask covers a cell. The
        embedding of a mask that covers none is zero: all classes are equally probable.
    """
    resized = functional.interpolate(masks.float(), features.grid, mode="bilinear", align_corners=False)
    inside = resized > 0
    vectors = clip.embed_regions(features, inside.float())  # Eq. (8), Eq. (10)
    return classify_vectors(vectors, text, clip.logit_scale, void), inside.any(-1).any(-1)


def classify_vectors(vectors: Tensor, text: TextEmbeddings, scale: Tensor | float, void: Tensor | None = None) -> Tensor:
    """Classify vectors of CLIP's joint space.

    Args:
        vectors: [..., D], not normalised.
        text: K classes; the score of a class is that of its best name.
        scale: 1 / τ.
        void: [D], not normalised, an additional last class.

    Returns:
        Log-probabilities [..., K], or [..., K + 1] with ``void``.
    """
    unit = functional.normalize(vectors.float(), dim=-1)
    logits = text.per_class(unit @ text.vectors.float().T)
    if void is not None:
        nothing = functional.normalize(void.float(), dim=-1)
        logits = torch.cat([logits, (unit @ nothing)[..., None]], -1)
    return (scale * logits).log_softmax(-1)  # Eq. (9), Eq. (11)


# --- stage 1: classes -------------------------------------------------------------------------------------------------


def geometric_mean(detector: Tensor, clip: Tensor, seen: Tensor, *, alpha: float | Tensor, beta: float | Tensor) -> Tensor:
    """Weighted geometric mean of two sets of class probabilities, in log space and not normalised.

    Args:
        detector: log-probabilities [..., K].
        clip: log-probabilities [..., K].
        seen: [K] bool, the classes the detector was trained on.
        alpha: CLIP's weight for seen classes, 0..1; broadcasts against [..., K].
        beta: CLIP's weight for unseen classes.

    Returns:
        [..., K], finite. Weight 0 gives ``detector`` and weight 1 ``clip``, exactly where they are finite.
    """
    lowest = _lowest(detector)
    weight = torch.where(seen, alpha, beta).to(detector.dtype)
    return torch.lerp(detector.clamp(min=lowest), clip.to(detector.dtype).clamp(min=lowest), weight)  # Eq. (7)


def class_ensemble(
    prediction: MaskPrediction,
    clip: Tensor,
    seen: Tensor,
    *,
    alpha: float = 0.4,
    beta: float = 0.8,
    behaviour: Behaviour = "paper",
    covered: Tensor | None = None,
) -> MaskPrediction:
    """Combine the class probabilities of detector and CLIP.

    With "no object", which keeps its probability p, both are distributions over the K classes, and the result is normalised to
    1 - p: the paper calls p_i a "calibrated class distribution". Eq. (7) itself is not normalised, and without "no object",
    where nothing competes with the classes, the result is the mean as written.

    Args:
        prediction: the detector's, of K classes, with "no object" or (paper only) without.
        clip: log-probabilities [B, Q, K] for the same masks.
        seen, alpha, beta: see `geometric_mean`.
        behaviour: see the module's docstring.
        covered: [B, Q] bool; where False, ``clip`` is ignored. The official code does so for ResNets, whose attention pool
            cannot pool an empty mask.

    Raises:
        UsageError: weights outside 0..1; "official" without "no object".
    """
    _check_unit(alpha=alpha, beta=beta)
    if behaviour == "official" and not prediction.void:
        raise UsageError("the official class ensemble needs a prediction with 'no object'; use behaviour='paper'")
    detector = prediction.per_class()
    if prediction.void:
        detector = detector.clamp(min=_lowest(detector))
        present = detector.logsumexp(-1, keepdim=True)  # log(1 - p)
        detector = detector - present
    if covered is not None:
        clip = torch.where(covered[..., None], clip, detector)
    mean = geometric_mean(detector, clip, seen, alpha=alpha, beta=beta)  # Eq. (7)
    if not prediction.void:
        return replace(prediction, classes=mean)
    classes = torch.cat([mean.log_softmax(-1) + present, prediction.classes[..., -1:]], -1)
    if behaviour == "official":
        classes = classes.logaddexp(classes.new_tensor(OFFICIAL_FLOOR))
    return replace(prediction, classes=classes)


# --- stage 2: masks ---------------------------------------------------------------------------------------------------


def mask_ensemble(
    prediction: MaskPrediction,
    sam: MaskPrediction,
    seen: Tensor,
    *,
    epsilon: float = 0.2,
    xi: float = 0.5,
    behaviour: Behaviour = "paper",
) -> MaskPrediction:
    """Combine the semantic scores of the model and of SAM's masks, for unseen classes.

    See ``MaskPrediction.semantic_ensemble``; panoptic and instance results use the model's masks alone, as in the paper.

    Args:
        prediction: the model's, of K classes, after the class ensemble.
        sam: SAM's masks of the same images, classified by `classify_masks`.
        seen: [K] bool.
        epsilon: weight of SAM's masks for unseen classes, 0..1; 0 returns the prediction unchanged.
        xi: a SAM mask is kept if the probability of its best class exceeds this threshold, 0..1.
        behaviour: see the module's docstring.

    Raises:
        UsageError: ``epsilon`` or ``xi`` outside 0..1; predictions of different images.
    """
    _check_unit(epsilon=epsilon, xi=xi)
    sizes, sam_sizes = ([geometry.size for geometry in each.geometries] for each in (prediction, sam))
    if sizes != sam_sizes:
        raise UsageError(f"predictions of different images: sizes {sizes} and {sam_sizes}; pass those of one batch")
    if epsilon == 0:
        return prediction
    kept = kept_masks(sam, seen, xi=xi, behaviour=behaviour)
    ours, theirs = prediction.per_class(), sam.per_class()
    rest = math.log1p(-epsilon) if epsilon < 1 else _lowest(ours)
    ours = torch.where(seen, ours, (ours + rest).clamp(min=_lowest(ours)))  # Eq. (12), (1 - ε) r
    theirs = (theirs + math.log(epsilon)).masked_fill(seen, _lowest(theirs))  # Eq. (12), ε r'
    masks = sam.masks.float() * STEEP if behaviour == "paper" else sam.masks  # Eq. (12), binary masks m'
    parts = (
        replace(prediction, classes=ours, void=False, auxiliary=()),
        replace(sam, masks=masks, classes=theirs, void=False, valid=kept, auxiliary=()),
    )
    return replace(prediction, semantic_ensemble=parts)


def kept_masks(sam: MaskPrediction, seen: Tensor, *, xi: float = 0.5, behaviour: Behaviour = "paper") -> Tensor:
    """SAM's masks whose class probability exceeds ``xi``, [B, Q] bool; see `mask_ensemble`."""
    probability = sam.per_class().exp()
    if behaviour == "official":
        probability = probability.masked_fill(seen, 0.0)
    kept = probability.amax(-1) > xi
    return kept if sam.valid is None else kept & sam.valid


def _lowest(tensor: Tensor) -> float:
    """Finite stand-in for log 0: -inf times a weight of 0 would be NaN."""
    return torch.finfo(tensor.dtype).min / 2


def _check_unit(**values: float) -> None:
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise UsageError(f"{name} must be in 0..1, not {value}")
