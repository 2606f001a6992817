"""The automatic mask generator: its two orders, its prompters, crops, the cache."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.mask_generator import agreement, random_blobs, select
from lexiseg.backbones.mask_generator import (
    GeneratedMasks,
    MaskGeneratorOptions,
    crop_boxes,
    generate_cached,
    generate_masks,
    given_points,
    grid_points,
    random_points,
)
from lexiseg.backbones.sam import SamFamily
from lexiseg.errors import OutputError, UsageError
from lexiseg.ops.masks import boxes_of_masks, stability_score
from lexiseg.ops.rle import decode_counts
from lexiseg.structures import Geometry
from tests.backbones.test_sam import tiny

LOOSE = MaskGeneratorOptions(pred_iou_threshold=0, stability_threshold=0.01, stability_offset=0.1, box_nms_threshold=1)


@pytest.fixture(scope="module", params=["sam", "sam_hq", "sam2"])
def backbone(request: pytest.FixtureRequest) -> SamFamily:
    return tiny(request.param)


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.rand(3, 50, 70, generator=torch.Generator().manual_seed(0))


def equal(first: GeneratedMasks, second: GeneratedMasks) -> bool:
    tensors = ("logits", "pred_iou", "stability", "boxes", "points", "areas", "crops", "resized")
    return len(first) == len(second) and all(torch.equal(getattr(first, name), getattr(second, name)) for name in tensors)


def test_official_defaults() -> None:
    options = MaskGeneratorOptions()
    thresholds = (options.pred_iou_threshold, options.stability_threshold, options.stability_offset, options.box_nms_threshold)
    assert thresholds == (0.88, 0.95, 1.0, 0.7)
    assert (options.points_per_batch, options.crop_layers, options.min_region_area) == (64, 0, 0)
    with pytest.raises(UsageError, match="points_per_batch must be int ≥ 1, not 0"):
        MaskGeneratorOptions(points_per_batch=0)


def test_batches_do_not_matter(backbone: SamFamily, image: Tensor) -> None:
    whole = generate_masks(backbone, image, LOOSE, grid_points(4))
    parts = generate_masks(backbone, image, replace(LOOSE, points_per_batch=3), grid_points(4))
    assert len(whole) > 1
    assert len(whole) == len(parts)
    torch.testing.assert_close(whole.pred_iou, parts.pred_iou, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole.logits.mean(dim=0), parts.logits.mean(dim=0), rtol=1e-4, atol=1e-4)
    assert bool((whole.pred_iou[:-1] >= whole.pred_iou[1:]).all())


def test_the_best_mask_of_each_point(backbone: SamFamily, image: Tensor) -> None:
    every = replace(LOOSE, stability_threshold=0.0, pred_iou_threshold=-100.0)
    three = generate_masks(backbone, image, every, grid_points(4))
    best = generate_masks(backbone, image, replace(every, best_mask_per_point=True), grid_points(4))
    assert len(three) in {16, 48}, "HQ-SAM has one anyway"
    assert len(best) == 16
    for point, pred_iou in zip(best.points, best.pred_iou, strict=True):
        assert pred_iou == three.pred_iou[(three.points == point).all(1)].max()


def test_fields_describe_the_masks_in_pixels(backbone: SamFamily, image: Tensor) -> None:
    masks = generate_masks(backbone, image, replace(LOOSE, full_resolution=True), grid_points(3))
    pixels = masks.binary()
    assert pixels.shape == (len(masks), 50, 70)
    assert torch.equal(masks.boxes, boxes_of_masks(pixels))
    assert torch.equal(masks.areas, pixels.sum(dim=(1, 2)))
    upsampled = backbone.geometry((50, 70)).upsample(masks.logits)
    torch.testing.assert_close(masks.stability, stability_score(upsampled, offset=LOOSE.stability_offset))
    assert all(torch.equal(decode_counts(runs, (50, 70)), mask) for runs, mask in zip(masks.runs, pixels, strict=True))
    assert torch.equal(masks.image_logits(), masks.logits)
    assert masks.geometry == backbone.geometry((50, 70))


@pytest.mark.parametrize("size", [(300, 400), (512, 512)])
def test_low_resolution_agrees_with_the_official_order(size: tuple[int, int]) -> None:
    scale = 256 / max(size)
    geometry = Geometry((256, 256), (round(size[0] * scale), round(size[1] * scale)), size)
    logits = random_blobs(240, 64, seed=5)
    pred_iou = 0.85 + 0.15 * torch.rand(240)
    options = MaskGeneratorOptions(stability_threshold=0.8)
    low = select(logits, pred_iou, geometry, options)
    full = select(logits, pred_iou, geometry, replace(options, full_resolution=True))
    assert len(full) >= 20
    assert agreement(full, low) >= 0.98
    assert agreement(low, full) >= 0.95
    assert agreement(full, low.select(torch.arange(len(low) // 2))) < 0.98  # the measure can fail


def test_empty_masks_are_nan_and_stay_only_without_a_threshold() -> None:
    geometry = Geometry((32, 32), (32, 32), (64, 64))
    logits, pred_iou = torch.full((2, 8, 8), -9.0), torch.ones(2)
    for full in (False, True):
        none = select(logits, pred_iou, geometry, MaskGeneratorOptions(full_resolution=full))
        assert len(none) == 0
        assert none.binary().shape == (0, 64, 64)
        assert none.runs == ()
        kept = select(logits, pred_iou, geometry, MaskGeneratorOptions(full_resolution=full, stability_threshold=0))
        assert bool(kept.stability.isnan().all())
        assert kept.boxes.tolist() == [[0, 0, 0, 0]] * len(kept)


def test_prompters() -> None:
    crop = (10, 20, 50, 100)
    assert grid_points(2)(crop, 1).tolist() == [[20, 40], [40, 40], [20, 80], [40, 80]]
    assert grid_points(5)(crop, 2).shape == (4, 2)
    points = random_points(40, seed=1)(crop, 1)
    assert bool(((points >= torch.tensor([10, 20])) & (points < torch.tensor([50, 100]))).all())
    assert torch.equal(points, random_points(40, seed=1)(crop, 1))
    assert given_points([[9, 30], [10, 20], [50, 30]])(crop, 1).tolist() == [[10, 20]]


def test_given_points_and_none(backbone: SamFamily, image: Tensor) -> None:
    masks = generate_masks(backbone, image, LOOSE, given_points([[35.0, 25.0]]))
    assert set(map(tuple, masks.points.tolist())) <= {(35.0, 25.0)}
    with pytest.raises(UsageError, match="no point prompt lies in the image of 70 × 50"):
        generate_masks(backbone, image, LOOSE, given_points([[90.0, 10.0]]))


def test_crops(image: Tensor) -> None:
    crops, layers = crop_boxes((50, 70), 2, 0.3)
    assert layers == [0] + [1] * 4 + [2] * 16
    assert crops[0] == (0, 0, 70, 50)
    covered = torch.zeros(3, 50, 70, dtype=torch.bool)
    for (left, top, right, bottom), layer in zip(crops, layers, strict=True):
        covered[layer, top:bottom, left:right] = True
    assert bool(covered.all())

    backbone = tiny("sam")
    options = replace(LOOSE, crop_layers=1, full_resolution=True)
    masks = generate_masks(backbone, image, options, grid_points(3))
    pixels = masks.binary()
    assert torch.equal(masks.boxes, boxes_of_masks(pixels))
    for box, crop in zip(masks.boxes.tolist(), masks.crops.tolist(), strict=True):
        assert crop[0] <= box[0] <= box[2] < crop[2]
        assert crop[1] <= box[1] <= box[3] < crop[3]
    # over the whole image, coarse: the mask of the logits is that of the pixels, up to their resolution
    rough = backbone.geometry((50, 70)).upsample(masks.image_logits()) > 0
    shared, union = (rough & pixels).sum((1, 2)), (rough | pixels).sum((1, 2))
    assert float((shared / union.clamp_min(1)).median()) > 0.7


def test_small_regions_are_removed(image: Tensor) -> None:
    backbone = tiny("sam")
    plain = generate_masks(backbone, image, replace(LOOSE, full_resolution=True), grid_points(3))
    masks = generate_masks(backbone, image, replace(LOOSE, min_region_area=30), grid_points(3))
    assert masks.edited is not None
    assert torch.equal(masks.areas, masks.binary().sum(dim=(1, 2)))
    assert torch.equal(masks.boxes, boxes_of_masks(masks.binary()))
    assert len(masks) <= len(plain) + 3


def test_cache(tmp_path: Path, image: Tensor) -> None:
    backbone = tiny("sam")
    for options in (LOOSE, replace(LOOSE, min_region_area=10)):
        folder = tmp_path / str(options.min_region_area)
        first = generate_cached(backbone, image, options, grid_points(3), folder=folder, identity="tiny")
        (file,) = folder.iterdir()
        written = file.stat().st_mtime_ns
        again = generate_cached(backbone, image, options, grid_points(3), folder=folder, identity="tiny")
        assert equal(first, again)
        assert again.geometry == first.geometry
        assert [runs.tolist() for runs in again.runs] == [runs.tolist() for runs in first.runs]
        assert file.stat().st_mtime_ns == written
        file.write_bytes(b"half a file")
        assert equal(first, generate_cached(backbone, image, options, grid_points(3), folder=folder, identity="tiny"))
    others = (
        (image, LOOSE, grid_points(3), "other"),
        (image + 1e-3, LOOSE, grid_points(3), "tiny"),
        (image, replace(LOOSE, box_nms_threshold=0.5), grid_points(3), "tiny"),
        (image, LOOSE, grid_points(2), "tiny"),
    )
    for number, (picture, options, prompter, identity) in enumerate(others):
        generate_cached(backbone, picture, options, prompter, folder=tmp_path / "0", identity=identity)
        assert len(list((tmp_path / "0").iterdir())) == number + 2
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(OutputError):
        generate_cached(backbone, image, LOOSE, grid_points(2), folder=tmp_path / "file", identity="tiny")


def test_a_picture_is_encoded_once_for_all_points(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, image = tiny("sam"), torch.rand(3, 512, 512)
    encode, times = backbone.encode_with_skips, []

    def counted(inputs: torch.Tensor) -> Any:
        times.append(len(inputs))
        return encode(inputs)

    monkeypatch.setattr(backbone, "encode_with_skips", counted)
    generate_masks(backbone, image, MaskGeneratorOptions(pred_iou_threshold=0, stability_threshold=0.5), grid_points(16))
    assert times == [1]
