"""k-means of many subsets at once, against a plain one and against scipy's."""

from __future__ import annotations

import numpy as np
import torch
from scipy.cluster.vq import kmeans2

from lexiseg.ops.kmeans import clusters_of
from lexiseg.ops.points import unit_grid

CELLS = unit_grid(8).float() * 8


def subsets(count: int, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    inside = torch.rand(count, 64, generator=generator) < share
    inside[:, 9] = True
    return inside, inside.int().argmax(1)


def farthest(points: np.ndarray, start: np.ndarray, count: int) -> np.ndarray:
    centres = [start]
    while len(centres) < count:
        nearest = [min(np.linalg.norm(point - centre) for centre in centres) for point in points]
        centres.append(points[int(np.argmax(nearest))])
    return np.array(centres)


def test_converged_it_is_what_scipy_finds_from_the_same_start() -> None:
    inside, first = subsets(20, 0.4)
    found = clusters_of(CELLS, inside, first, 4, iterations=60)
    compared = 0
    for subset, start, members in zip(inside, first, found, strict=True):
        points = CELLS[subset].double().numpy()
        centres, labels = kmeans2(points, farthest(points, CELLS[start].double().numpy(), 4), iter=60, minit="matrix")
        distances = np.linalg.norm(points[:, None] - centres, axis=-1)
        ordered = np.sort(distances, axis=1)
        if (ordered[:, 1] - ordered[:, 0]).min() < 1e-4:
            continue  # a tie, which rounding decides
        compared += 1
        assert (members[:, subset].int().argmax(0).numpy() == labels).all()
    assert compared > 5


def test_clusters_share_out_their_subset() -> None:
    inside, first = subsets(30, 0.3)
    found = clusters_of(CELLS, inside, first, 5)
    assert found.shape == (30, 5, 64)
    assert torch.equal(found.sum(1), inside.long())
    assert found.any(-1).all(), "as many different points there are"
    assert found[torch.arange(30), 0, first].float().mean() > 0.8, "the first cluster starts where it was told to"


def test_a_subset_is_clustered_as_if_it_were_alone() -> None:
    inside, first = subsets(6, 0.5)
    together = clusters_of(CELLS, inside, first, 3)
    for number in range(6):
        assert torch.equal(clusters_of(CELLS, inside[number : number + 1], first[number : number + 1], 3)[0], together[number])


def test_fewer_points_than_clusters_leave_some_empty() -> None:
    inside = torch.zeros(1, 64, dtype=torch.bool)
    inside[0, [3, 60]] = True
    found = clusters_of(CELLS, inside, torch.tensor([3]), 4)
    assert found.sum(-1).tolist() == [[1, 1, 0, 0]]
    assert found[0, 0, 3]
    assert found[0, 1, 60]
