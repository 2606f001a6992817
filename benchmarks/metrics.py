"""How much faster the metrics are than the official way of counting, on the same images in one run, and what they keep.

``python benchmarks/metrics.py [--images 500] [--json]`` makes synthetic images of 480 × 640 pixels. Panoptic quality starts
at two decoded PNGs and is compared with two counters: "by masks" is brute force, a mask a segment and an intersection for
each two of one class; "by pairs" does what panopticapi does (make ids of the colours, check those of the result against its
list, count the pixels' pairs of ids, walk through dictionaries), which is as fast as the installed NumPy finds unique
numbers. Average precision is compared with pycocotools. All must give the same numbers. Of each the shortest of a few runs
counts. Memory is what the peak of the process and the state of a metric grow by from a fifth of the images to all.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from lexiseg.exports import ids_to_colours
from lexiseg.metrics import AveragePrecision, Metric, PanopticQuality
from lexiseg.metrics.regions import runs_of_regions
from lexiseg.ops.colours import ids_of_picture
from lexiseg.ops.rle import area_of_counts, compress
from lexiseg.structures import Instance, Instances, PanopticMap, PanopticSegment

HIGH, WIDE, CLASSES = 480, 640, 80  # COCO's
SHIFT = np.uint64(1 << 24)
PANOPTIC_BAR, PRECISION_BAR = 8.0, 5.0


def panoptic_pair(image: int) -> tuple[PanopticMap, PanopticMap]:
    """Boxes over bands of stuff, ids like colours; the result is the truth, moved a little and partly renamed."""
    random = np.random.default_rng(image)
    ids = np.zeros((HIGH, WIDE), np.int32)
    numbers = iter(np.unique(random.integers(1, 1 << 24, 200)).tolist())
    labels: dict[int, int] = {}
    for top in range(0, HIGH - 60, 120):
        labels[number := next(numbers)] = int(random.integers(CLASSES // 2, CLASSES))
        ids[top : top + 120] = number
    for _ in range(18):
        labels[number := next(numbers)] = int(random.integers(CLASSES // 2))
        top, left, high, wide = (int(random.integers(limit)) for limit in (HIGH, WIDE, HIGH // 5, WIDE // 5))
        ids[top : top + high + 8, left : left + wide + 8] = number
    ids[random.integers(HIGH) :, : WIDE // 10] = 0
    moved = np.roll(ids, tuple(random.integers(-12, 13, 2)), (0, 1))
    there, found = set(np.unique(ids).tolist()), set(np.unique(moved).tolist())
    truth = [PanopticSegment(number, label, random.random() < 0.05) for number, label in labels.items() if number in there]
    renamed = {number: int(random.integers(CLASSES)) if random.random() < 0.2 else label for number, label in labels.items()}
    result = [PanopticSegment(number, label) for number, label in renamed.items() if number in found]
    return PanopticMap(ids, tuple(truth)), PanopticMap(moved, tuple(result))


def instance_pair(image: int) -> tuple[Instances, Instances]:
    """The things of a truth, and some eighty scored results near them, some with another name."""
    random = np.random.default_rng(image)
    truth, found = panoptic_pair(image)
    runs = runs_of_regions(truth.ids)
    moved = [runs_of_regions(np.roll(truth.ids, tuple(random.integers(-20, 21, 2)), (0, 1))) for _ in range(5)]

    def instance(segment: PanopticSegment, counts: NDArray[np.int64], score: float = 1.0) -> Instance:
        return Instance(segment.label, counts, area_of_counts(counts), (0.0, 0.0, 0.0, 0.0), segment.crowd, score)

    there = tuple(instance(segment, runs[segment.id]) for segment in truth.segments if segment.label < CLASSES // 2)
    results = tuple(
        instance(PanopticSegment(segment.id, segment.label), again[segment.id], round(float(random.random()), 2))
        for again in moved
        for segment in found.segments
        if segment.id in again and segment.label < CLASSES // 2
    )
    return Instances((HIGH, WIDE), there), Instances((HIGH, WIDE), results)


Row = dict[str, Any]
Sums = dict[int, list[float]]  # of each class: IoU, matched, wrong, missed


Painted = tuple[Image.Image, tuple[PanopticSegment, ...]]


def painted(panoptic: PanopticMap) -> Painted:
    """A map as its PNG holds it, decoded, and its list of segments."""
    return Image.fromarray(ids_to_colours(panoptic.ids)), panoptic.segments


def ids_plainly(picture: Image.Image) -> NDArray[np.uint32]:
    """The ids in the colours of a PNG, as the official tool computes them."""
    colours = np.array(picture, dtype=np.uint32)
    return colours[..., 0] + 256 * colours[..., 1] + 256 * 256 * colours[..., 2]


def count_by_pairs(sums: Sums, truth: Painted, found: Painted, areas: dict[int, int]) -> None:
    """Add one image as the official tool does, with dictionaries of pairs; it reads the areas of the truth from a file."""
    there, results = ({segment.id: segment for segment in segments} for _, segments in (truth, found))
    truth_ids, found_ids = (ids_plainly(picture) for picture, _ in (truth, found))
    found_areas, without_pixels = {}, set(results)
    for number, count in zip(*np.unique(found_ids, return_counts=True), strict=True):
        if number == 0:
            continue
        if number not in results:
            raise KeyError(f"segment {number} is not in the list")
        found_areas[number] = count
        without_pixels.remove(number)
    if without_pixels:
        raise KeyError(f"segments {without_pixels} have no pixels")
    codes = truth_ids.astype(np.uint64) * SHIFT + found_ids.astype(np.uint64)
    shared = {(code // SHIFT, code % SHIFT): count for code, count in zip(*np.unique(codes, return_counts=True), strict=True)}
    matched_there, matched_found = set(), set()
    for (first, second), count in shared.items():
        if first not in there or second not in results or there[first].crowd:
            continue
        if there[first].label != results[second].label:
            continue
        iou = count / (areas[first] + found_areas[second] - count - shared.get((0, second), 0))
        if iou > 0.5:
            sums[there[first].label][0] += iou
            sums[there[first].label][1] += 1
            matched_there.add(first)
            matched_found.add(second)
    crowds = {segment.label: segment.id for segment in there.values() if segment.crowd}
    for segment in there.values():
        sums[segment.label][3] += segment.id not in matched_there and not segment.crowd
    for segment in results.values():
        if segment.id not in matched_found:
            excused = shared.get((0, segment.id), 0)
            if segment.label in crowds:
                excused += shared.get((crowds[segment.label], segment.id), 0)
            sums[segment.label][2] += excused / found_areas[segment.id] <= 0.5


def count_by_masks(sums: Sums, truth: Painted, found: Painted, areas: dict[int, int]) -> None:
    """Add one image by brute force, as panoptic quality is defined: with a mask of each segment."""
    truth_ids, found_ids = (ids_plainly(picture) for picture, _ in (truth, found))
    void, there = truth_ids == 0, {segment: truth_ids == segment.id for segment in truth[1]}
    missed = {segment for segment in there if not segment.crowd}
    for segment in found[1]:
        mask, excuses, matched = found_ids == segment.id, void, False
        area, on_void = np.count_nonzero(mask), np.count_nonzero(mask & void)
        for other in (other for other in there if other.label == segment.label):
            if other.crowd:
                excuses = void | there[other]  # of two crowds the last, as the official tool does
                continue
            shared = np.count_nonzero(mask & there[other])
            iou = shared / (areas[other.id] + area - shared - on_void)
            if iou > 0.5:
                sums[segment.label][0] += iou
                sums[segment.label][1] += 1
                missed.remove(other)
                matched = True
        sums[segment.label][2] += not matched and np.count_nonzero(mask & excuses) / area <= 0.5
    for segment in missed:
        sums[segment.label][3] += 1


def coco_documents(pairs: Sequence[tuple[Instances, Instances]]) -> tuple[dict[str, object], list[dict[str, object]]]:
    """The same images as pycocotools wants them."""

    def record(image: int, thing: Instance) -> dict[str, object]:
        mask = {"size": [HIGH, WIDE], "counts": compress(thing.counts)}
        return {"image_id": image, "category_id": thing.label + 1, "segmentation": mask}

    there = [(image, thing) for image, (truth, _) in enumerate(pairs) for thing in truth.things]
    annotations = [
        {**record(image, thing), "id": number, "area": thing.area, "iscrowd": int(thing.crowd), "bbox": [0, 0, 1, 1]}
        for number, (image, thing) in enumerate(there, start=1)
    ]
    results = [
        {**record(image, thing), "score": thing.score} for image, (_, found) in enumerate(pairs) for thing in found.things
    ]
    images = [{"id": image, "height": HIGH, "width": WIDE} for image in range(len(pairs))]
    categories = [{"id": label + 1, "name": str(label)} for label in range(CLASSES)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}, results


def official_precision(truth: dict[str, object], results: list[dict[str, object]]) -> float:
    """AP by pycocotools."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def best_time(work: Callable[[], object], times: int = 3) -> float:
    """The shortest of a few runs, in seconds: what other programs take away is not counted."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def panoptic_speed(images: int) -> list[Row]:
    """PQ by us and by both references, image by image, from the colours of two pictures."""

    def counted(truth: Painted, found: Painted) -> None:
        metric.count(*(PanopticMap(ids_of_picture(picture), segments) for picture, segments in (truth, found)))

    counters = {"by masks": count_by_masks, "by pairs": count_by_pairs}
    sums: dict[str, Sums] = {name: {label: [0.0] * 4 for label in range(CLASSES)} for name in counters}
    spare: Sums = {label: [0.0] * 4 for label in range(CLASSES)}
    slow, fast = dict.fromkeys(counters, 0.0), 0.0
    metric = PanopticQuality(CLASSES, [label < CLASSES // 2 for label in range(CLASSES)])
    for image in range(images):
        maps = panoptic_pair(image)
        truth, found = map(painted, maps)
        areas = dict(zip(*(values.tolist() for values in np.unique(maps[0].ids, return_counts=True)), strict=True))
        fast += best_time(partial(counted, truth, found), 5)
        metric.update(image, *maps)
        for name, count in counters.items():
            slow[name] += best_time(partial(count, spare, truth, found, areas), 5)
            count(sums[name], truth, found, areas)
    ours = (metric.result()["PQ"], fast)
    return [comparison(f"PQ, {name}", (quality(sums[name]), slow[name]), ours, PANOPTIC_BAR) for name in counters]


def quality(sums: Sums) -> float:
    """PQ of the sums: the mean over the classes that are there."""
    there = [row for row in sums.values() if any(row)]
    return float(np.mean([iou / (right + wrong / 2 + missed / 2) for iou, right, wrong, missed in there]))


def precision_speed(images: int) -> Row:
    """AP of both; reading and writing files counts for neither."""
    pairs = [instance_pair(image) for image in range(images)]
    truth, results = coco_documents(pairs)

    def ours() -> float:
        metric = AveragePrecision(CLASSES)
        for image, pair in enumerate(pairs):
            metric.update(image, *pair)
        return float(metric.result()["AP"])

    def official() -> float:
        return official_precision(truth, [dict(result) for result in results])

    return comparison("AP", (official(), best_time(official, 2)), (ours(), best_time(ours, 2)), PRECISION_BAR)


def comparison(name: str, reference: tuple[float, float], ours: tuple[float, float], bar: float) -> Row:
    """Values and seconds of both, whether the values are equal, and whether the bar is reached."""
    (expected, slow), (value, fast) = reference, ours
    return {
        "metric": name,
        "reference_value": expected,
        "value": value,
        "reference_seconds": slow,
        "seconds": fast,
        "speedup": slow / fast,
        "bar": bar,
        "reached": slow / fast >= bar,
        "equal": abs(value - expected) <= 1e-9,
    }


def growth(metric: Metric[Any, Any], pair: Callable[[int], tuple[Any, Any]], images: int) -> Row:
    """How many MiB the process grows, and how many bytes of state an image adds, from a fifth of the images to all."""
    sizes = []
    for image in range(images):
        metric.update(image, *pair(image))
        if image + 1 in (images // 5, images):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)
            sizes.append((peak, sum(array.nbytes for array in metric.state().values())))
    (first, first_state), (last, last_state) = sizes
    return {
        "metric": type(metric).__name__,
        "images": [images // 5, images],
        "growth_mib": last - first,
        "state_bytes_per_image": (last_state - first_state) / (images - images // 5),
    }


def main() -> int:
    """Measure, print, and say by the exit status whether the numbers are equal; the seconds depend on the machine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    things = [label < CLASSES // 2 for label in range(CLASSES)]
    memory = [  # first, for the peak of a process never falls
        growth(PanopticQuality(CLASSES, things), panoptic_pair, arguments.images),
        growth(AveragePrecision(CLASSES), instance_pair, arguments.images),
    ]
    speed = [*panoptic_speed(arguments.images), precision_speed(arguments.images)]
    if arguments.json:
        print(json.dumps({"images": arguments.images, "speed": speed, "memory": memory}))
    else:
        for row in speed:
            values = f"{row['value']:.6f}, reference {row['reference_value']:.6f}"
            seconds = f"{row['seconds']:.2f} s, reference {row['reference_seconds']:.2f} s"
            verdict = ("reached" if row["reached"] else "NOT reached") + ("" if row["equal"] else ", and the values DIFFER")
            print(f"{row['metric']}  {values}; {seconds}: {row['speedup']:.1f}×, bar {row['bar']:g}×: {verdict}")
        for row in memory:
            first, last = row["images"]
            state = f"{row['state_bytes_per_image']:.0f} bytes of state an image"
            print(f"{row['metric']}  {row['growth_mib']:.1f} MiB more after {last} images than after {first}; {state}")
    return 0 if all(row["equal"] for row in speed) else 1


if __name__ == "__main__":
    sys.exit(main())
