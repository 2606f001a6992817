"""Pictures made worse: more so with each severity, always the same, and still pictures."""

from __future__ import annotations

import numpy as np
import pytest

from lexiseg.data.corrupt import STRENGTHS, corrupt, parse
from lexiseg.errors import UsageError


@pytest.mark.parametrize("kind", sorted(STRENGTHS))
def test_each_severity_is_worse_than_the_one_before(kind):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    far = [np.abs(corrupt(pixels, kind, severity, "a").astype(float) - pixels).mean() for severity in range(1, 6)]
    assert far == sorted(far)
    assert far[0] > 1
    again = corrupt(pixels, kind, 3, "a")
    assert again.dtype == np.uint8
    assert again.shape == pixels.shape
    np.testing.assert_array_equal(again, corrupt(pixels, kind, 3, "a"))


def test_noise_differs_between_pictures():
    pixels = np.full((8, 8, 3), 128, np.uint8)
    assert (corrupt(pixels, "noise", 2, "a") != corrupt(pixels, "noise", 2, "b")).any()


def test_what_can_be_asked_for():
    assert parse("blur:3") == ("blur", 3)
    for wrong in ("blur", "blur:0", "fog:2", "blur:6", "blur:x"):
        with pytest.raises(UsageError, match="severity from 1 to 5"):
            parse(wrong)
