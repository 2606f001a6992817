"""How much faster the mask generator is on the low-resolution grid than in the official order, and how alike they are.

``python benchmarks/mask_generator.py [--json]`` feeds both orders the same decoder outputs: smooth random blobs of all
sizes, steep enough that about half pass the filters, doubled so that suppression has work. Only the part after the
decoder is timed (CPU seconds, so that other programs do not count).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from lexiseg.backbones.mask_generator import GeneratedMasks, MaskGeneratorOptions, filter_masks, join, suppress
from lexiseg.structures import Geometry, Size

AGREEING_IOU = 0.98
MASKS_PER_POINT = 3


def random_blobs(count: int, side: int, seed: int) -> Tensor:
    """Logits [count, side, side] like a decoder's: wobbly discs with edges of different steepness, each there thrice."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(different, 1, 1, generator=generator)

    different = -(-count // MASKS_PER_POINT)
    steps = torch.arange(side) + 0.5
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    radius = side * torch.exp(uniform(-4.0, -1.0))
    distance = ((x - side * uniform(0, 1)) ** 2 + (y - side * uniform(0, 1)) ** 2).sqrt()
    coarse = torch.randn(different, 1, 9, 9, generator=generator)
    wobble = functional.interpolate(coarse, (side, side), mode="bicubic", align_corners=False)[:, 0]
    logits = (radius * (1 + 0.3 * wobble) - distance) * torch.exp(uniform(0.0, 2.5))
    shifts = 0.3 * torch.randn(MASKS_PER_POINT, different, 1, 1, generator=generator)
    return (logits + shifts).clamp(-30, 30).flatten(0, 1)[:count]


def select(logits: Tensor, pred_iou: Tensor, geometry: Geometry, options: MaskGeneratorOptions) -> GeneratedMasks:
    """The generator after the decoder, in batches."""
    high, wide = geometry.size
    batches = [
        filter_masks(
            some,
            scores,
            torch.zeros(len(some), 2, dtype=torch.float64),
            geometry=geometry,
            crop=(0, 0, wide, high),
            image=geometry,
            options=options,
        )
        for some, scores in zip(
            logits.split(MASKS_PER_POINT * options.points_per_batch),
            pred_iou.split(MASKS_PER_POINT * options.points_per_batch),
            strict=True,
        )
    ]
    return suppress(join(batches), options.box_nms_threshold)


def agreement(reference: GeneratedMasks, ours: GeneratedMasks) -> float:
    """Share of the reference's masks that one of ours matches with IoU of at least 0.98; 1 without a reference."""
    if len(reference) == 0:
        return 1.0
    if len(ours) == 0:
        return 0.0
    first, second = reference.binary().flatten(1).float(), ours.binary().flatten(1).float()
    shared = first @ second.T
    union = first.sum(dim=1)[:, None] + second.sum(dim=1) - shared
    return float(((shared / union.clamp_min(1)).amax(dim=1) >= AGREEING_IOU).float().mean())


def compare(size: Size, *, masks: int, grid: int, seed: int, repeats: int) -> dict[str, float]:
    """Both orders on one image size: CPU seconds (best of ``repeats``), speed-up, agreement, survivors."""
    scale = 4 * grid / max(size)
    geometry = Geometry((4 * grid, 4 * grid), (round(size[0] * scale), round(size[1] * scale)), size)
    logits = random_blobs(masks, grid, seed)
    pred_iou = 0.8 + 0.2 * torch.rand(masks, generator=torch.Generator().manual_seed(seed + 1))
    low = MaskGeneratorOptions()
    full = replace(low, full_resolution=True)
    seconds = {"low": float("inf"), "full": float("inf")}
    results = {}
    for _ in range(repeats):
        for name, options in (("low", low), ("full", full)):
            start = time.process_time()
            results[name] = select(logits, pred_iou, geometry, options)
            seconds[name] = min(seconds[name], time.process_time() - start)
    return {
        "height": size[0],
        "width": size[1],
        "low_resolution_seconds": seconds["low"],
        "full_resolution_seconds": seconds["full"],
        "speed_up": seconds["full"] / seconds["low"],
        "agreement": agreement(results["full"], results["low"]),
        "survivors": len(results["full"]),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison; 1 if fewer than 98 % of the masks agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024], help="sides of the square images, in pixels")
    parser.add_argument("--points", type=int, default=128, help="point prompts, three masks each")
    parser.add_argument("--grid", type=int, default=256, help="side of the decoder's masks")
    parser.add_argument("--repeats", type=int, default=3, help="runs, of which the fastest counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    rows = [
        compare(
            (size, size), masks=MASKS_PER_POINT * options.points, grid=options.grid, seed=options.seed, repeats=options.repeats
        )
        for size in options.sizes
    ]
    if options.json:
        print(json.dumps(rows))
    else:
        print("image        low-res s  full-res s  speed-up  agreement  survivors")
        for row in rows:
            print(
                f"{row['width']:.0f} x {row['height']:.0f}".ljust(13)
                + f"{row['low_resolution_seconds']:9.3f}  {row['full_resolution_seconds']:10.3f}  {row['speed_up']:7.1f}x"
                + f"  {row['agreement']:9.1%}  {row['survivors']:9.0f}"
            )
    return 0 if all(row["agreement"] >= AGREEING_IOU for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
