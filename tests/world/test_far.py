"""Styles outside of the package: atlases, splits of few things, and how the tool that packs them names photographs."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lexiseg.errors import DataError, UsageError
from lexiseg.world import Split, drawn, render, scenes, splits, sprites, styles, world_classes
from tests.world.atlases import far_atlas

TOOL = Path(__file__).resolve().parents[2] / "tools/far_styles.py"
NAMES = [row.name for row in world_classes()]
THINGS = [label for label, row in enumerate(world_classes()) if row.thing]
specification = importlib.util.spec_from_file_location("far_styles", TOOL)
assert specification is not None
assert specification.loader is not None
far_styles = importlib.util.module_from_spec(specification)
specification.loader.exec_module(far_styles)


def test_an_atlas_outside_of_the_package_is_a_style(tmp_path):
    atlas = str(far_atlas(tmp_path))
    assert drawn(atlas) == (3, 40, 200)
    for label, sprite in enumerate(sprites(atlas)):
        opaque = np.asarray(sprite.getchannel("A")) > 128
        assert opaque.mean() == pytest.approx(np.pi / 4 if label in (3, 40, 200) else 0, abs=0.02)
    assert drawn("noto") == tuple(THINGS)


def test_scenes_of_few_things_hold_these_alone(tmp_path):
    atlas = str(far_atlas(tmp_path))
    split = Split((atlas,), seen_only=False, things=drawn(atlas))
    found = [segment for index in range(12) for segment in render((4, index), split, size=96).segments]
    assert {segment.label for segment in found if segment.style} == {3, 40, 200}
    assert {segment.style for segment in found} == {None, atlas}
    assert len({segment.label for segment in found if not segment.style}) > 5, "stuff is not limited"


def test_seen_names_and_chosen_things_are_both_held_to():
    seen = next(label for label in THINGS if world_classes()[label].seen)
    unseen = next(label for label in THINGS if not world_classes()[label].seen)
    split = Split(styles(), seen_only=True, things=(seen, unseen))
    labels = {segment.label for index in range(6) for segment in render((1, index), split, size=64).segments if segment.style}
    assert labels == {seen}
    with pytest.raises(UsageError, match="allows no thing"):
        render((1, 0), Split(styles(), seen_only=True, things=(unseen,)), size=64)
    with pytest.raises(UsageError, match="allows no thing"):
        render((1, 0), Split(styles(), seen_only=False, things=(len(NAMES) - 1,)), size=64)


@pytest.mark.parametrize("split", ["train", "val", "style"])
def test_a_split_that_names_no_things_is_what_it_was(split):
    rule = splits()[split]
    assert rule.things is None
    everything = Split(rule.styles, rule.seen_only, things=tuple(reversed(range(len(NAMES)))))
    for index in range(4):
        plain, same = render((8, index), rule, size=64), render((8, index), everything, size=64)
        assert plain.segments == same.segments
        assert (plain.image == same.image).all()
        assert (plain.panoptic == same.panoptic).all()


RECORDED = {
    "train": [
        (432, None),
        (444, None),
        (422, None),
        (21, "noto"),
        (407, "noto"),
        (83, "fluent"),
        (62, "fluent"),
        (197, "noto"),
        (432, None),
        (435, None),
        (213, "fluent"),
        (142, "fluent"),
        (187, "fluent"),
        (197, "noto"),
        (97, "noto"),
        (60, "fluent"),
        (190, "noto"),
    ],
    "val": [
        (440, None),
        (435, None),
        (288, "noto"),
        (197, "fluent"),
        (427, None),
        (443, None),
        (379, "noto"),
        (398, "noto"),
        (333, "noto"),
        (84, "noto"),
        (330, "fluent"),
        (365, "fluent"),
        (89, "noto"),
    ],
    "style": [
        (441, None),
        (427, None),
        (424, None),
        (382, "twemoji"),
        (78, "twemoji"),
        (8, "twemoji"),
        (434, None),
        (425, None),
        (68, "twemoji"),
        (289, "twemoji"),
        (164, "twemoji"),
        (53, "twemoji"),
    ],
}


@pytest.mark.parametrize("split", RECORDED)
def test_what_the_scenes_of_a_split_hold_is_what_was_recorded(split):
    """Recorded before splits could name things."""
    assert [(segment.label, segment.style) for scene in scenes(split, 2, seed=12345) for segment in scene.segments] == RECORDED[
        split
    ]


def test_what_is_no_atlas_of_this_world_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no style 'crayons'; the emoji world has noto, fluent, twemoji"):
        sprites("crayons")
    with pytest.raises(UsageError, match=r"no style '.*missing\.webp'"):
        drawn(str(tmp_path / "missing.webp"))
    atlas = far_atlas(tmp_path)
    beside = atlas.with_suffix(".json")
    beside.write_text(json.dumps({"drawings": {NAMES[4]: "disc"}}), encoding="utf-8")
    with pytest.raises(DataError, match="does not show the classes"):
        drawn(str(atlas))
    beside.unlink()
    with pytest.raises(DataError, match=r"far\.json is missing"):
        drawn(str(atlas))
    Image.new("RGBA", (96, 96)).save(tmp_path / "small.webp")
    with pytest.raises(DataError, match="has no cells of 96 pixels for 422 things"):
        sprites(str(tmp_path / "small.webp"))


@pytest.mark.parametrize(
    ("line", "stem", "name"),
    [
        ("A bear.", "bear", "bear"),
        ("A pair of cherries.", "Cherry_Stella", "cherry"),
        ("A “Fuji” apple.", "apple_fuji", None),
        ("A ripe, red tomato!", "tomato", "tomato"),
        ("A t shirt.", "t_tshirt", "t-shirt"),
        ("A lightbulb.", "Lightbulb", "light bulb"),
        ("A glove.", "t_glove", "gloves"),
        ("A peacock (a male peafowl).", "peacock", "peacock"),
        ("Remember to flush the toilet!", "toilet", "toilet"),
        ("A glass of water.", "glass", None),
        ("A rubber duck.", "rubberduck", None),
        ("A sea lion.", "sea_lion", None),
        ("A VW Beetle.", "beetle", None),
        ("A hot air balloon.", "balloon360", None),
        ("A bearskin.", "bear", None),
        ("", "bear", None),
    ],
)
def test_a_stamp_is_what_its_text_calls_it(line, stem, name):
    rows = [{"name": row.name, "synonyms": list(row.synonyms)} for row in world_classes() if row.thing]
    match = far_styles.matched(line, stem, far_styles.word_forms(rows))
    assert (match[0] if match else None) == name


def test_what_is_said_plainly_is_taken_first():
    rows = [{"name": "chicken", "synonyms": ["hen"]}]
    forms = far_styles.word_forms(rows)
    far = [far_styles.matched(line, "", forms)[1] for line in ("A chicken.", "A brown chicken.", "A hen.", "A brown hen.")]
    assert far == sorted(set(far))


def test_photographs_become_a_style_of_the_world(tmp_path):
    """From a made-up package: what is no photograph, has no text, or names nothing of the world is left out."""
    stamps = tmp_path / "package/usr/share/tuxpaint/stamps"
    for source, line in {
        "animals/zebra-b": "A zebra.",
        "animals/zebra-a": "A zebra.",
        "animals/blue_zebra": "A pink zebra.",
        "animals/cartoon/lion": "A lion.",
        "animals/gnu": "A gnu.",
        "animals/tiger": None,
        "clothes/t_scarf": "A scarf.",
        "tools/hammer": "A hammer.\nde.utf8=Ein Hammer.",
        "tools/saw": "A saw.",
    }.items():
        path = stamps / f"{source}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGBA", (60, 40))
        picture.paste((200, 0, 0, 255), (10, 10, 50, 30))
        picture.save(path)
        if line is not None:
            path.with_suffix(".txt").write_text(line, encoding="utf-8")
    (stamps / "tools/saw.svg").write_text("<svg/>", encoding="utf-8")
    command = [sys.executable, TOOL, "photographs", "--package", tmp_path / "package", "--output", tmp_path / "far"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "far/photographs.json").read_text(encoding="utf-8"))
    assert document["drawings"] == {"zebra": "animals/zebra-a.png", "hammer": "tools/hammer.png"}
    assert "not animals/zebra-b.png" in done.stdout
    atlas = str(tmp_path / "far/photographs.webp")
    assert [NAMES[label] for label in drawn(atlas)] == ["zebra", "hammer"]
    sprite = sprites(atlas)[NAMES.index("zebra")]
    assert sprite.getchannel("A").point(lambda alpha: 255 * (alpha > 128)).getbbox() == (0, 24, 96, 72)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_what_is_packed_is_not_committed():
    root = TOOL.parents[1]
    if not (root / ".git").exists():
        pytest.skip("not a git checkout")
    done = subprocess.run(["git", "check-ignore", "output/far/openmoji.webp"], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "output/far/openmoji.webp"
