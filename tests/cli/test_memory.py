"""A picture for which there is too little memory is a line that names it, and the others are done."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lexiseg.exports.manifest import FILE
from lexiseg.world.scenes import scenes

MEGABYTES = (60, 170)  # too little to read the large picture, and to find and describe what is in it
# The limit is what the process has when everything is loaded, and some megabytes more.
LIMITED = """
import resource, sys
from pathlib import Path
from lexiseg.cli import main
from lexiseg.cli.segment import load
from lexiseg.ops.allocator import return_freed_memory
small, large, output = sys.argv[1:4]
load("catseg-tiny")(small, "dog; grass")
for megabytes in map(int, sys.argv[4:]):
    return_freed_memory()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + megabytes * 10**6, resource.RLIM_INFINITY))
    words = ["--model", "catseg-tiny", "--classes", "dog; grass; sky", "--overwrite", "--output", output]
    code = main(["segment", large, small, *words])
    print("exit", code, flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit the address space")
def test_too_little_memory_at_any_stage_is_a_line_about_the_picture(tmp_path: Path) -> None:
    small, large = tmp_path / "small.png", tmp_path / "large.png"
    scene = next(scenes("val", 1)).image
    Image.fromarray(scene).save(small)
    Image.fromarray(np.tile(scene, (9, 9, 1))).save(large, compress_level=1)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(small), str(large), str(tmp_path / "found"), *map(str, MEGABYTES)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
        timeout=1200,
    )
    assert "Traceback" not in done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("exit")] == ["exit 1"] * len(MEGABYTES), done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("lexiseg: ")]
    assert lines[1::2] == ["lexiseg: 1 of 2 pictures failed"] * len(MEGABYTES)
    for line in lines[::2]:
        assert line.startswith(f"lexiseg: {large}: ")
        assert "memory" in line
    written = [path.name for path in (tmp_path / "found").iterdir() if path.name != FILE]
    assert [name.startswith("small.png-") for name in written] == [True] * 3
