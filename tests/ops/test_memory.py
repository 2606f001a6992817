"""How much memory is left is the least of what the machine, the control groups and the process allow."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import pytest
import torch

from lexiseg.errors import explained
from lexiseg.ops import memory
from lexiseg.ops.masks import areas_of_masks
from lexiseg.ops.memory import masks_at_once, memory_left, require_memory
from lexiseg.ops.rle import encode_masks


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GB free, of them 2 swap, and no limit."""
    write(tmp_path / "proc/self", statm="1000 1 1 1 0 1 0", cgroup="0::/")
    write(
        tmp_path / "proc", meminfo="MemTotal: 16000000 kB\nMemAvailable: 6000000 kB\nSwapFree: 2000000 kB\nHugePages_Total: 0"
    )
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return tmp_path


@pytest.mark.usefixtures("machine")
def test_a_machine_without_limits_has_what_is_free() -> None:
    assert memory_left() == 8_000_000 * 1024


@pytest.mark.parametrize("limited", ["pod", "pod/container"])
def test_a_container_has_what_the_tightest_of_its_groups_leaves(machine: Path, limited: str) -> None:
    write(machine / "proc/self", cgroup="0::/pod/container")
    for group in ("pod", "pod/container"):
        limit = 3_000_000_000 if group == limited else "max"
        stat = "anon 900000000\ninactive_file 500000000"
        write(machine / "cgroup" / group, memory__max=limit, memory__current=1_000_000_000, memory__stat=stat)
    assert memory_left() == 2_500_000_000, "pages of files are given back on demand"


def test_control_groups_of_the_first_version_count(machine: Path) -> None:
    write(machine / "proc/self", cgroup="5:cpu,cpuacct:/x\n4:memory:/box\n0::/")
    stat = "cache 7\ntotal_inactive_file 100"
    folder = machine / "cgroup/memory/box"
    write(folder, memory__limit_in_bytes=1_000_000, memory__usage_in_bytes=400_000, memory__stat=stat)
    assert memory_left() == 600_100


@pytest.mark.usefixtures("machine")
def test_a_limit_of_the_address_space_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (10**9, 10**9))
    assert memory_left() == 10**9 - 1000 * resource.getpagesize()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1, 1))
    assert memory_left() == 0


def test_where_the_system_does_not_say_nothing_is_refused(machine: Path) -> None:
    for file in (machine / "proc").rglob("*"):
        file.unlink() if file.is_file() else None
    assert memory_left() is None
    require_memory(10**18, "7 regions")


@pytest.mark.usefixtures("machine")
def test_what_needs_more_than_is_left_is_refused_and_all_else_is_not() -> None:
    require_memory(8_000_000 * 1024, "7 regions")
    with pytest.raises(MemoryError, match=r"^7 regions need about 8\.2 GB, and 8\.2 GB are left$") as caught:
        require_memory(8_000_000 * 1024 + 1, "7 regions")
    assert explained(caught.value).startswith(f"there is not enough memory for it ({caught.value}); scale the picture down")


def test_masks_at_once_are_bounded_by_their_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CELLS", 100)
    assert [masks_at_once(size, most) for size, most in (((5, 5), None), ((5, 5), 3), ((11, 10), None), ((0, 5), 7))] == [
        4,
        3,
        1,
        7,
    ]


@pytest.mark.parametrize("cells", [1, 70, 2**26])
def test_areas_and_runs_do_not_depend_on_how_many_masks_are_worked_on_at_once(
    monkeypatch: pytest.MonkeyPatch, cells: int
) -> None:
    masks = torch.rand(2, 3, 5, 7, generator=torch.Generator().manual_seed(0)) < 0.4
    runs = [counts.tolist() for counts in encode_masks(masks[0])]
    monkeypatch.setattr(memory, "CELLS", cells)
    assert areas_of_masks(masks).tolist() == masks.flatten(2).sum(2).tolist()
    assert areas_of_masks(masks[:, :0]).tolist() == [[], []]
    assert areas_of_masks(masks[0, 0]).tolist() == int(masks[0, 0].sum())
    assert [counts.tolist() for counts in encode_masks(masks[0])] == runs
