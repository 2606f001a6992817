"""Grounded-SAM (Ren et al., 2024, arXiv:2401.14159): Grounding DINO (Liu et al., 2023, arXiv:2303.05499) and SAM.

Grounding DINO reads names and detects boxes; SAM segments each box. Nothing is trained. It supports any Grounding DINO and
MM-Grounding-DINO of transformers with a Swin, and any SAM.

    z_qt, b_q      = GroundingDINO(image, prompt)             logits of the tokens t of a prompt, boxes
    p(s | q)       = mean_{t of s} sigmoid(z_qt)                 name s; `name_score`
    p(k | q)       = max_{s of k} p(s | q)                    class k
    m_q            = SAM(image, b_q)                          mask logits

Names are coupled where they are in one prompt: the encoder fuses all tokens of a prompt with the image. So that the order of
the classes does not matter, the distinct phrases are sorted and then split into prompts.  [decided]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lexiseg.backbones.grounding_dino import DetectorFeatures, GroundingDino, input_size
from lexiseg.backbones.sam import SamFamily, Skips, best_of, of_image
from lexiseg.errors import UsageError
from lexiseg.methods.base import Segmenter, check_trace, in_groups
from lexiseg.methods.grounded_sam.config import GroundedSamConfig
from lexiseg.methods.grounded_sam.prompts import Prompt, phrase_of, prompts_of
from lexiseg.ops.masks import box_nms
from lexiseg.structures import OUTSIDE, Geometry, ImageBatch, MaskPrediction, Size, TextEmbeddings, Trace, size_of

NEVER = -1e4  # logit or log-probability of what has probability 0, not only nearly, as `OUTSIDE`


@dataclass(frozen=True)
class Detections:
    """N boxes of one image.

    Attributes:
        boxes: [N, 4], (left, top, right, bottom) in pixels of the image.
        scores: [N, P] or [N, K] probabilities of phrases or classes; 0 where the text does not count for the box.
    """

    boxes: Tensor
    scores: Tensor

    def select(self, rows: Tensor) -> Detections:
        """Select boxes by indices, in that order."""
        return Detections(self.boxes[rows], self.scores[rows])


class GroundedSam(Segmenter):
    """Grounded-SAM.

    Args:
        detector: detects boxes of names.
        sam: segments the boxes.
        config: image sizes, prompts and thresholds.
    """

    tasks = ("panoptic", "semantic", "instance")

    key = "grounded_sam"
    reference = 'Ren et al.: "Grounded SAM: Assembling Open-World Models for Diverse Visual Tasks", arXiv:2401.14159'
    reads_names = True
    config: GroundedSamConfig

    def __init__(self, detector: GroundingDino, sam: SamFamily, config: GroundedSamConfig = GroundedSamConfig()) -> None:
        super().__init__(config)
        self.detector, self.sam = detector, sam

    def parts(self) -> Mapping[str, nn.Module]:
        return {"detector": self.detector, "sam": self.sam}

    @torch.no_grad()
    def forward(self, images: ImageBatch, text: TextEmbeddings, *, trace: Trace | None = None) -> MaskPrediction:
        """Predict masks of boxes, best score first, without "no object": boxes have been filtered already.

        A trace receives ``detector`` [C, h, w], the coarsest map of Grounding DINO's image tower.

        Raises:
            UsageError: the names of the text are unknown, or not readable by Grounding DINO.
        """
        check_trace(images, trace)
        phrases, of_name = phrases_of(text)
        config, pictures = self.config, list(images)
        prompts = prompts_of(phrases, self.detector.tokenize, self.detector.max_tokens, config.names_per_prompt)
        sizes = (config.shortest_edge, config.longest_edge)

        def detected(group: Sequence[Tensor]) -> list[Detections]:
            features = self.detector.features(torch.cat([self.detector.preprocess(image, *sizes) for image in group]))
            if trace is not None:
                trace["detector"], size = features.maps[-1][0][0], size_of(group[0])
                trace.geometry = Geometry(size_of(features.pixels), input_size(size, *sizes), size)
            return self._detected(features, prompts, [size_of(image) for image in group])

        order = text_order(of_name, text.class_index)
        detections = []
        for boxes in in_groups(pictures, lambda image: input_size(size_of(image), *sizes), detected):
            classes = Detections(boxes.boxes, text.per_class(boxes.scores[:, of_name.to(boxes.scores.device)]))
            detections.append(classes.select(self._suppressed(classes, order)))
        return MaskPrediction.join(self._segmented(pictures, detections))

    def _detected(self, features: DetectorFeatures, prompts: Sequence[Prompt], sizes: Sequence[Size]) -> list[Detections]:
        """Detect all prompts in images of one network input; boxes by prompt, then by query."""
        parts: list[list[Detections]] = [[] for _ in sizes]
        total = sum(len(prompt.spans) for prompt in prompts)
        for prompt in prompts:
            logits, boxes = self.detector.detect(features, prompt.tokens)
            probabilities, spans = logits.sigmoid(), prompt.positive_map().to(logits.device)
            for index, (height, width) in enumerate(sizes):
                kept = probabilities[index].amax(-1) > self.config.box_threshold
                scores = phrase_scores(probabilities[index, kept], spans, self.config.text_threshold, self.config.name_score)
                named = scores.amax(-1) > 0
                scale = boxes.new_tensor([width, height, width, height])
                pixels = torch.minimum((boxes[index, kept][named] * scale).clamp(min=0), scale)
                after = total - prompt.first - len(spans)
                parts[index].append(Detections(pixels, functional.pad(scores[named], (prompt.first, after))))
        return [Detections(torch.cat([d.boxes for d in part]), torch.cat([d.scores for d in part])) for part in parts]

    def _suppressed(self, detections: Detections, order: Tensor) -> Tensor:
        """Rows of the boxes that remain, best score first: suppressed by better ones of their class, then of any class."""
        score, label = detections.scores[:, order.to(detections.scores.device)].max(-1)
        rows = [torch.zeros(0, dtype=torch.int64, device=score.device)]
        for number in label.unique().tolist():
            same = torch.nonzero(label == number).flatten()
            rows.append(same[box_nms(detections.boxes[same], score[same], self.config.class_nms_threshold)])
        kept = torch.cat(rows).sort().values
        return kept[box_nms(detections.boxes[kept], score[kept], self.config.nms_threshold)][: self.config.max_boxes]

    def _segmented(self, pictures: Sequence[Tensor], detections: Sequence[Detections]) -> list[MaskPrediction]:
        """Segment the boxes of each image; images with boxes are encoded together."""
        some = [index for index, boxes in enumerate(detections) if len(boxes.boxes)]
        encoded: dict[int, tuple[Tensor, Skips]] = {}
        if some:
            inputs = torch.cat([self.sam.preprocess(pictures[index]) for index in some])
            embeddings, skips = self.sam.encode_with_skips(inputs)
            encoded = {index: (embeddings[row : row + 1], of_image(skips, row)) for row, index in enumerate(some)}
        return [
            self._prediction(size_of(picture), boxes, encoded.get(index))
            for index, (picture, boxes) in enumerate(zip(pictures, detections, strict=True))
        ]

    def _prediction(self, size: Size, detections: Detections, encoded: tuple[Tensor, Skips] | None) -> MaskPrediction:
        """Prediction of one image; a single invalid row if there are no boxes."""
        if encoded is None:
            masks = detections.boxes.new_full((1, 1, self.sam.mask_size, self.sam.mask_size), OUTSIDE)
            classes = detections.scores.new_full((1, 1, detections.scores.shape[-1]), OUTSIDE)
        else:
            masks = only_near(self._masks(size, detections.boxes, *encoded))[None]
            scores = detections.scores
            classes = torch.where(scores > 0, scores.log(), NEVER)[None]
        valid = torch.full(masks.shape[:2], encoded is not None, device=masks.device)
        return MaskPrediction(masks, classes, False, (self.sam.geometry(size).one_step(),), valid)

    def _masks(self, size: Size, boxes: Tensor, embeddings: Tensor, skips: Skips) -> Tensor:
        """Mask logits [N, m, m] of boxes [N, 4]."""
        masks = []
        for batch in self.sam.scale_points(boxes.unflatten(-1, (2, 2)), size).flatten(1).split(self.config.boxes_per_batch):
            logits, _ = best_of(*self.sam.decode(embeddings, boxes=batch, multimask=self.config.multimask, skips=skips))
            masks.append(logits[:, 0].float())
        return torch.cat(masks)


def phrases_of(text: TextEmbeddings) -> tuple[list[str], Tensor]:
    """Return the P distinct phrases of a vocabulary, sorted, and the phrase of each name, [S].

    Raises:
        UsageError: the names are unknown.
    """
    if len(text.all_names) != len(text.class_index):
        raise UsageError("these text embeddings have no names; make them with the model's own embed_text, not of vectors alone")
    of_name = [phrase_of(name) for name in text.all_names]
    phrases = sorted(set(of_name))
    numbers = {phrase: number for number, phrase in enumerate(phrases)}
    return phrases, torch.tensor([numbers[phrase] for phrase in of_name])


def text_order(of_name: Tensor, class_index: Tensor) -> Tensor:
    """Return an order [K] of the classes that depends on their phrases only, so that ties do not depend on the order given."""
    members: dict[int, set[int]] = {}
    for phrase, label in zip(of_name.tolist(), class_index.tolist(), strict=True):
        members.setdefault(label, set()).add(phrase)
    return torch.tensor(sorted(members, key=lambda label: sorted(members[label])))


def phrase_scores(probabilities: Tensor, spans: Tensor, threshold: float, kind: str) -> Tensor:
    """Score phrases by the probabilities of their tokens.

    Args:
        probabilities: [N, L] of N boxes.
        spans: [P, L] bool, tokens of P phrases.
        threshold: a phrase counts if one of its tokens is above it.
        kind: "mean" or "max" of the tokens.

    Returns:
        [N, P], 0 for phrases that do not count.
    """
    best = (probabilities[:, None] * spans).amax(-1)
    scores = best if kind == "max" else probabilities @ spans.to(probabilities).T / spans.sum(-1)
    return torch.where(best > threshold, scores, 0)


def only_near(masks: Tensor) -> Tensor:
    """Set cells of mask logits [N, h, w] without a positive cell around them to `NEVER`.

    [decided] The mask is unchanged: bilinear interpolation is positive only between cells that touch a positive one. But what
    is far from every mask has probability 0, and so no class, instead of the class of the least improbable mask.
    """
    if len(masks) == 0:
        return masks
    near = functional.max_pool2d(masks[:, None], 3, stride=1, padding=1)[:, 0] > 0
    return masks.masked_fill(~near, NEVER)
