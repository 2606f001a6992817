"""Seconds and memory of Grounded-SAM on a photograph, stage by stage, with random weights.

``python benchmarks/grounded.py PHOTO [--model grounded_sam-swin-t] [--vocabulary coco] [--boxes 20] [--repeat 2]``

What is detected then is nothing, so the given number of boxes of highest score is segmented, whatever the score. Names are
spelled letter by letter, as no vocabulary of word pieces is at hand: they have several times the tokens of the published one,
and so several times its prompts; the table says how many. Seconds are of the processor, memory is that of `methods.measure`.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from methods import measure

from lexiseg.data.images import as_pixels
from lexiseg.inference.pipeline import as_tensor
from lexiseg.methods import model_named
from lexiseg.methods.grounded_sam.model import GroundedSam, phrases_of
from lexiseg.methods.grounded_sam.prompts import prompts_of
from lexiseg.structures import ImageBatch
from lexiseg.text.vocabulary import Vocabulary


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--model", default="grounded_sam-swin-t")
    parser.add_argument("--vocabulary", default="coco", help="classes, as for lexiseg segment")
    parser.add_argument("--boxes", type=int, default=20, help="boxes that are segmented")
    parser.add_argument("--repeat", type=int, default=2, help="the shortest run counts")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    segmenter, weights = measure(lambda: model_named(arguments.model).empty().eval(), 1)
    assert isinstance(segmenter, GroundedSam)
    config = segmenter.config = replace(
        segmenter.config, box_threshold=0.0, text_threshold=0.0, nms_threshold=1.0, class_nms_threshold=1.0,
        max_boxes=arguments.boxes,
    )  # fmt: skip
    image = as_tensor(as_pixels(arguments.photo), torch.device("cpu"))
    text = segmenter.embed_text(Vocabulary.parse(arguments.vocabulary))
    detector, phrases = segmenter.detector, phrases_of(text)[0]
    prompts = prompts_of(phrases, detector.tokenize, detector.max_tokens)
    inputs = detector.preprocess(image, config.shortest_edge, config.longest_edge)
    features, tower = measure(lambda: detector.features(inputs), arguments.repeat)
    _, prompt = measure(lambda: detector.detect(features, prompts[0].tokens), arguments.repeat)
    _, encoder = measure(lambda: segmenter.sam.encode(segmenter.sam.preprocess(image)), arguments.repeat)
    _, whole = measure(lambda: segmenter(ImageBatch.of([image]), text), 1)
    high, wide = image.shape[1:]
    print(f"{arguments.model}, random weights, {arguments.photo.name} of {wide} × {high} pixels as {tuple(inputs.shape[2:])}")
    print(
        f"{len(phrases)} names, {len(prompts)} prompts, the first of {len(prompts[0].tokens)} tokens; {arguments.boxes} boxes"
    )
    for stage, cost in (
        ("weights", weights), ("image tower of the detector", tower), ("the rest of it, one prompt", prompt),
        ("image encoder of SAM", encoder), ("whole image, all prompts and boxes", whole),
    ):  # fmt: skip
        print(f"{stage:<36} {cost.cpu:8.1f} s {cost.memory:8.0f} MiB")


if __name__ == "__main__":
    main()
