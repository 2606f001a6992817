"""FC-CLIP as mask proposer of the tiny models, `maskclip-tiny` and `fovseg-tiny`."""

from __future__ import annotations

import torch
from torch import Tensor

from lexiseg.backbones.proposals import MaskProposer, Proposals
from lexiseg.methods.fcclip.model import STRIDE, FcClip
from lexiseg.structures import TextEmbeddings


class FcClipProposals(MaskProposer):
    """Class-agnostic masks of the decoder of an FC-CLIP."""

    def __init__(self, segmenter: FcClip) -> None:
        super().__init__()
        self.segmenter = segmenter
        self.queries = segmenter.mask_decoder.query_features.num_embeddings

    @torch.no_grad()
    def forward(self, images: Tensor) -> Proposals:
        clip, size = self.segmenter.clip, (int(images.shape[-2]), int(images.shape[-1]))
        pixels = torch.stack([clip.padded(image, STRIDE) for image in images])
        nothing = TextEmbeddings(pixels.new_zeros(1, clip.width), torch.zeros(1).long(), ("",), torch.ones(1).bool())
        text = nothing.to(pixels.device)  # masks do not depend on names
        masks = self.segmenter.decode(pixels, size, self.segmenter.clip_features(pixels), text).masks
        return Proposals(masks, (int(pixels.shape[-2]), int(pixels.shape[-1])))
