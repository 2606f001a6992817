"""SAM-MI's equations, against numbers computed from the paper alone (no official code is public)."""

from __future__ import annotations

from pathlib import Path

import torch

from lexiseg.methods.sam_mi.aggregation import aggregate, matching_scores, members
from lexiseg.methods.sam_mi.injection import intra_mask, mask_embeddings
from lexiseg.methods.sam_mi.targets import target_probabilities
from tests.parity.report import Row, load_case, max_difference


def targets(path: Path) -> list[Row]:
    """Eq. (3)-(5)."""
    tensors, document = load_case(path)
    found = target_probabilities(tensors["in.masks"], density=document["density g_p"], limit=document["limit m_p"])
    return [Row(path.name, "probabilities", max_difference(found, tensors["out.probabilities"]), 1e-6)]


def aggregation(path: Path) -> list[Row]:
    """Eq. (6)-(7)."""
    tensors, document = load_case(path)
    scores = matching_scores(tensors["in.sam_masks"], tensors["in.text_masks"])
    found = aggregate(tensors["in.sam_masks"], members(scores, document["alpha_sma"]))
    same = found.shape == tensors["out.masks"].shape and bool(torch.equal(found, tensors["out.masks"]))
    return [
        Row(path.name, "scores", max_difference(scores, tensors["out.scores"]), 1e-6),
        Row(path.name, "masks that differ", float(not same), 0),
    ]


def injection(path: Path) -> list[Row]:
    """Eq. (8)-(9)."""
    tensors, _ = load_case(path)
    features, masks = tensors["in.features"][0], tensors["in.masks"]
    embeddings = mask_embeddings(features, masks)
    intra = intra_mask(features, masks, embeddings)
    return [
        Row(path.name, "embeddings of masks", max_difference(embeddings, tensors["out.mask_embeddings"]), 1e-5),
        Row(path.name, "intra-mask context", max_difference(intra, tensors["out.intra"][0]), 1e-5),
    ]


CASES = {"equations_tspp_targets*": targets, "equations_smagg_*": aggregation, "equations_dmi_intra*": injection}
