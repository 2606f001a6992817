"""One check of everything that needs a GPU: ``tools/gpu_check.sh`` runs it, on a machine that is lent for a few minutes.

    environment   device, driver, versions, the rate of a bfloat16 matrix product
    tests         tests of what runs on a GPU, with ``--device cuda``: which fail, and why
    parity        tiny models on the CPU and here: how far predictions differ, how many pixels get the same name
    waits         where the code waits for the GPU
    full          full-size models with random weights: pictures a second, memory, share of what arithmetic alone would take
    training      tiny recipes: steps a second

Each stage is a process with a deadline; what it found by then is kept, and no failure stops the others. After every stage
``$OUT/gpu_check.json`` and ``$OUT/gpu_check.md`` hold all that is known. With ``--tiny`` the CPU stands in for the GPU and
one model for all.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = "torch torchvision transformers timm open_clip_torch huggingface_hub numpy scipy scikit-image hotcoco pycocotools tokenizers pytest pytest-xdist hypothesis"
# what runs on the device first, then what the versions of that machine could break
TESTS = "tests/laws tests/layers tests/ops tests/losses tests/methods tests/backbones tests/test_postprocess.py tests/test_ensembles.py tests/text"
FIRST = "sam_clip-vit-l14 fcclip-convnext-l cmpf-convnext-l catseg-vit-l14 sam_mi-vit-l14 escnet-vit-l14 maskclip-vit-l14 fovseg-vit-l14 sam_clip-convnext-l"
NAMES, SIDE, BATCHES, CLASSES = 40, 640, (1, 8), 150
COMPILING = 30.0  # seconds a compiled model may take in all
LANES = (("environment", "tests"), ("parity", "waits")), (("full",),), (("training",),)  # lanes of a phase run side by side
SHARES = {0: 0.36, 1: 0.44, 2: 0.2}  # of the time, a phase

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Stage:
    """What a stage is given.

    Attributes:
        device: "cuda", or "cpu" to try the check itself.
        tiny: one model instead of all.
        until: when it has to be done, of `time.time`.
        picture: a file.
        path: where its rows go.
    """

    device: str
    tiny: bool
    until: float
    picture: str
    path: Path

    @property
    def left(self) -> float:
        """Seconds."""
        return self.until - time.time()

    def keep(self, rows: Rows) -> None:
        """Replace what is known so far."""
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps(rows, default=str), encoding="utf-8")
        fresh.replace(self.path)


def reason(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:300]


@contextmanager
def noted(row: dict[str, Any]) -> Iterator[None]:
    """What goes wrong is a column of the row, and nothing stops."""
    try:
        yield
    except Exception as error:  # whatever it is, the next row may work
        row["error"] = reason(error)
        place = [line for line in _lines(error) if "/lexiseg/" in line] or _lines(error)
        row["at"] = place[-1].split("/src/")[-1] if place else ""


def _lines(error: BaseException) -> list[str]:
    trace, lines = error.__traceback__, []
    while trace is not None:
        lines.append(f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}")
        trace = trace.tb_next
    return lines


def apart(work: Callable[[dict[str, Any]], None], row: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Fill a row in a process of its own, which is forked before CUDA is touched and has so many seconds."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def inside() -> None:
        _alone()
        with noted(row):
            work(Told(row, theirs.send))
        theirs.send(row)

    process = context.Process(target=inside)
    process.start()
    theirs.close()
    end, known = time.time() + seconds, dict(row)
    while time.time() < end and ours.poll(max(0.0, end - time.time())):
        try:
            known = ours.recv()
        except EOFError:
            break
    process.join(0.5)
    if process.is_alive():
        _end(process.pid)
        process.join(5)
        if time.time() >= end:
            known["error"] = f"not done in {seconds:.0f} s"
    elif process.exitcode:
        known["error"] = f"ended with {process.exitcode}"
    return known


class Told(dict[str, Any]):
    """A row of which each number is sent as soon as it is known, for its process may not live to send the whole."""

    def __init__(self, row: dict[str, Any], send: Callable[[dict[str, Any]], None]) -> None:
        super().__init__(row)
        self.row, self.send = row, send

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        self.row[name] = value
        self.send(dict(self.row))


def _alone() -> None:
    """Let what this process starts (compilers, loaders) end with it, and it with the process that forked it."""
    os.setsid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _end(number: int | None) -> None:
    """End a process of ours and what it started."""
    if number is not None:
        with suppress(ProcessLookupError):
            os.killpg(number, signal.SIGKILL)


def forked(work: Callable[[], object], log: Path) -> BaseProcess:
    """Start work in a process whose output goes to a file. It is forked, for then torch is read once for all of them."""

    def inside() -> None:
        _alone()
        os.chdir(ROOT)
        with log.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        work()

    process = multiprocessing.get_context("fork").Process(target=inside)
    process.start()
    return process


# --- stages ---------------------------------------------------------------------------------------------------------


def environment(stage: Stage) -> None:
    """What this machine is."""
    import torch

    rows: Rows = [{"what": "python", "is": platform.python_version()}, {"what": "cores", "is": os.cpu_count()}]
    for name in PACKAGES.split():
        try:
            rows.append({"what": name, "is": version(name)})
        except PackageNotFoundError:
            rows.append({"what": name, "is": "missing"})
    stage.keep(rows)
    if stage.device == "cuda":
        rows.append({"what": "device", "is": torch.cuda.get_device_name()})
        rows.append({"what": "memory_GiB", "is": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)})
        rows.append({"what": "cuda, cudnn", "is": f"{torch.version.cuda}, {torch.backends.cudnn.version()}"})
        asked = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
        row: dict[str, Any] = {"what": "driver, clock, power"}
        with noted(row):
            row["is"] = subprocess.run(asked, capture_output=True, text=True, timeout=20).stdout.strip()
        rows.append(row)
    rows.append({"what": "bfloat16 product, TFLOP/s", "is": round(rate(stage.device, stage.tiny) / 1e12, 3)})
    stage.keep(rows)


def rate(device: str, tiny: bool) -> float:
    """Operations a second of a bfloat16 matrix product."""
    import torch

    side = 256 if tiny else 8192
    one, other = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / seconds_of(lambda: one @ other, device, 10)


def seconds_of(work: Callable[[], object], device: str, times: int) -> float:
    """Of one call, after one that does not count."""
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    work()
    wait()
    began = time.perf_counter()
    for _ in range(times):
        work()
    wait()
    return (time.perf_counter() - began) / times


def tests(stage: Stage) -> None:
    """The test suite where it meets a device; rows of what fails, then how many did not."""
    import pytest

    rows: Rows = []
    counts: Counter[str] = Counter()
    saved = 0.0

    class Recorder:
        def pytest_runtest_logreport(self, report: Any) -> None:
            nonlocal saved
            if report.failed:
                crash = getattr(report.longrepr, "reprcrash", None)
                why = (crash.message if crash else str(report.longrepr)).strip().splitlines() or [""]
                rows.append({"test": report.nodeid, "why": why[0][:300]})
            if report.when == "call" or not report.passed:
                counts[report.outcome] += 1
            if report.failed or time.time() - saved > 1:
                saved = time.time()
                stage.keep([*rows, {"test": "all, so far", "why": dict(counts)}])

        def pytest_collectreport(self, report: Any) -> None:
            if report.failed:
                rows.append({"test": report.nodeid, "why": str(report.longrepr).strip().splitlines()[-1][:300]})

    chosen = ["tests/ops/test_rle.py", "tests/layers/test_pixel_decoder.py"] if stage.tiny else TESTS.split()
    parallel = []
    try:
        if not stage.tiny and version("pytest-xdist"):
            parallel = ["-n", str(max(2, (os.cpu_count() or 4) - 4))]
    except PackageNotFoundError:
        pass
    options = ["-q", "--no-header", "--tb=short", "-p", "no:cacheprovider", "-W", "ignore", "--device", stage.device]
    status = pytest.main([*options, *parallel, *chosen], plugins=[Recorder()])
    stage.keep([*rows, {"test": "all", "why": {**counts, "status": int(status)}}])


def tiny_models(stage: Stage) -> list[str]:
    """All tiny models, or one whose weights are here."""
    from lexiseg.methods import MODELS

    names = [name for name in MODELS if "-tiny" in name]
    if not stage.tiny:
        return names
    here = [name for name in names if all(source.present() for source in MODELS[name].sources.values())]
    return [next(name for name in ("fcclip-tiny", "catseg-tiny", *here) if name in here)]


def parity(stage: Stage) -> None:
    """A row a model, precision and task."""
    rows: Rows = []
    for name in tiny_models(stage):
        row: dict[str, Any] = {"model": name}
        with noted(row):
            _compare(stage, name, rows)
        if "error" in row:
            rows.append(row)
        stage.keep(rows)


def _compare(stage: Stage, name: str, rows: Rows) -> None:
    import torch

    from lexiseg.data.images import as_pixels
    from lexiseg.inference.pipeline import DTYPES, Pipeline, load
    from lexiseg.postprocess import semantic_scores
    from lexiseg.text.vocabulary import Vocabulary

    pixels = as_pixels(stage.picture)
    pipeline = load(name, device="cpu")
    pipeline.cache = None
    vocabulary = Vocabulary.parse([entry.names[0] for entry in Vocabulary.builtin("emoji-seen").classes[:NAMES]])
    text = pipeline.embed(vocabulary)
    prediction = pipeline.predict(pixels, text)
    scores, here = next(iter(semantic_scores(prediction))), _results(pipeline, pixels, vocabulary, prediction, text)
    segmenter = pipeline.segmenter.to(stage.device)
    for precision in ("float32", "float32 with TF32", "bfloat16", "float16"):
        row: dict[str, Any] = {"model": name, "precision": precision}
        rows.append(row)
        with noted(row):
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision.endswith("TF32")
            there = Pipeline(segmenter, device=stage.device, dtype=DTYPES[precision.split()[0]])
            own = there.embed(vocabulary)
            row["names"] = float((own.vectors.cpu() - text.vectors).abs().max())
            predicted = there.predict(pixels, own)
            found = next(iter(semantic_scores(predicted))).cpu().float()
            row["scores"] = float((found - scores).abs().max())
            row["finite"] = bool(found.isfinite().all())
            for task, result in _results(there, pixels, vocabulary, predicted, own).items():
                row[task] = _agreement(here[task], result, task)
        stage.keep(rows)


def _results(pipeline: Any, pixels: Any, vocabulary: Any, prediction: Any, text: Any) -> dict[str, Any]:
    from lexiseg.inference.pipeline import as_segmentation, regions_of

    policy = pipeline.segmenter.policy
    return {
        task: as_segmentation(task, pixels, vocabulary, regions_of(prediction, text, task, policy))
        for task in pipeline.segmenter.tasks
    }


def _agreement(one: Any, other: Any, task: str) -> float:
    """The share of pixels with the same name, or of instances found again, whatever their order."""
    import numpy as np

    if task != "instance":
        return float(np.mean(one.semantic == other.semantic))
    again = 0
    for segment, mask in zip(one.segments, one.masks, strict=True):
        for rival, its in zip(other.segments, other.masks, strict=True):
            same = segment.label == rival.label and abs(segment.score - rival.score) < 0.05
            if same and (mask & its).sum() > 0.9 * (mask | its).sum():
                again += 1
                break
    return again / len(one.segments) if one.segments else float(not other.segments)


def waits(stage: Stage) -> None:
    """Where a picture's way through a model waits for the GPU: a row a line of the package."""
    import torch

    from lexiseg.data.images import as_pixels
    from lexiseg.inference.pipeline import Pipeline, load
    from lexiseg.text.vocabulary import Vocabulary

    rows: Rows = []
    pixels = as_pixels(stage.picture)
    vocabulary = Vocabulary.parse([entry.names[0] for entry in Vocabulary.builtin("emoji-seen").classes[:NAMES]])
    for name in tiny_models(stage):
        row: dict[str, Any] = {"model": name}
        with noted(row):
            pipeline = load(name, device="cpu")
            with counting(stage.device, pipeline.segmenter) as (found, device):
                there = Pipeline(pipeline.segmenter, device=device)
                text = there.embed(vocabulary)
                found.clear()
                prediction = there.predict(pixels, text)
                row["forward"] = found.total()
                _results(there, pixels, vocabulary, prediction, text)
            row |= {"in all": found.total(), "lines": "; ".join(f"{line} × {count}" for line, count in found.most_common(15))}
        rows.append(row)
        stage.keep(rows)
        if stage.device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@contextmanager
def counting(device: str, segmenter: Any) -> Iterator[tuple[Counter[str], Any]]:
    """Count the lines of the package that wait, on the GPU or on one that only pretends to be there."""
    import torch

    if device != "cuda":
        from tests.laws.pretended import GPU, PretendedGpu, on_gpu

        with PretendedGpu() as gpu, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            on_gpu(segmenter)
            yield gpu.waits, GPU
        return
    found: Counter[str] = Counter()

    def count(*_: Any, **__: Any) -> None:
        frame: Any = sys._getframe()
        while frame is not None and "/lexiseg/" not in frame.f_code.co_filename:
            frame = frame.f_back
        found["elsewhere" if frame is None else f"{frame.f_code.co_filename.split('/lexiseg/')[-1]}:{frame.f_lineno}"] += 1

    segmenter.to(device)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = count
        torch.cuda.set_sync_debug_mode("warn")
        yield found, torch.device(device)


def full(stage: Stage) -> None:
    """A row a model: one of each method as it is, the same compiled while there is time, then the others."""
    from lexiseg.methods import MODELS

    names = [name for name in FIRST.split() if name in MODELS]
    names += [name for name in MODELS if "-tiny" not in name and name not in names]
    if stage.tiny:
        names = ["fcclip-tiny"]
    rows: Rows = []
    first = [name for name in names if stage.tiny or name in FIRST.split()]
    jobs = [(name, compiled) for compiled in (False, True) for name in first]
    jobs += [(name, False) for name in names if name not in first]
    for name, compiled in jobs:
        row = {"model": name, "compiled": compiled}
        if stage.left < 6:
            row["error"] = "no time left"
        else:
            limit = stage.left - 2 if stage.tiny else min(stage.left - 2, COMPILING if compiled else 25)
            row = apart(lambda told: _measure(stage.device, stage.tiny, told), row, limit)
        rows.append(row)
        stage.keep(rows)
    stage.keep(rows)


def _measure(device: str, tiny: bool, row: dict[str, Any]) -> None:
    import torch
    from torch.nn import functional
    from torch.utils.flop_counter import FlopCounterMode

    from lexiseg.inference.pipeline import regions_of
    from lexiseg.methods import model_named
    from lexiseg.postprocess import Policy
    from lexiseg.structures import ImageBatch, TextEmbeddings

    began = time.perf_counter()
    torch.manual_seed(0)
    variant = model_named(row["model"])
    config = replace(variant.config, shortest_edge=64) if tiny else None
    with torch.device(device):  # random weights are made there
        segmenter = variant.empty(config).eval()
    segmenter = segmenter.to(device).requires_grad_(False)
    _sure(segmenter)
    row["build_s"] = round(time.perf_counter() - began, 1)
    classes, side = (10, 96) if tiny else (CLASSES, SIDE)
    vectors = functional.normalize(torch.randn(classes, segmenter.clip.width, device=device), dim=-1)
    numbers = torch.arange(classes, device=device)
    text = TextEmbeddings(vectors, numbers, tuple(f"name {n}" for n in range(classes)), numbers % 2 == 0)
    image = functional.interpolate(torch.rand(1, 3, 20, 20, device=device), (side, side), mode="bicubic")[0].clamp(0, 1)
    peak = rate(device, tiny)
    look: Any = segmenter
    if row["compiled"]:
        began = time.perf_counter()
        look = torch.compile(segmenter, backend="eager" if tiny else "inductor")
    for batch in BATCHES:
        images = ImageBatch.of([image] * batch)

        def forward(images: Any = images) -> Any:
            with torch.no_grad(), torch.autocast(device, torch.bfloat16):
                return look(images, text)

        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        prediction = forward()
        if batch == 1 and row["compiled"]:
            row["compile_s"] = round(time.perf_counter() - began, 1)
        if batch == 1 and not row["compiled"]:
            with FlopCounterMode(display=False) as counter:
                forward()
            row["GFLOP"] = round(counter.get_total_flops() / 1e9, 1)
        once = seconds_of(forward, device, 1)
        taken = once if once * 3 > 3 else seconds_of(forward, device, max(1, min(20, int(1 / once))))
        row[f"ms_{batch}"] = round(1000 * taken, 2)
        row[f"pictures_per_s_{batch}"] = round(batch / taken, 2)
        if "GFLOP" in row:
            row[f"floor_share_{batch}"] = round(batch * row["GFLOP"] * 1e9 / peak / taken, 3)
        if device == "cuda":
            row[f"GiB_{batch}"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        if batch == 1:
            if hasattr(prediction, "masks"):
                row["masks"] = int(prediction.masks.shape[1] if prediction.valid is None else prediction.valid[0].sum())
            task = segmenter.tasks[0]
            row[f"{task}_ms"] = round(1000 * seconds_of(lambda: regions_of(prediction, text, task, Policy()), device, 2), 2)  # noqa: B023
        if tiny or taken > 4:
            break


def _sure(segmenter: Any) -> None:
    """A SAM with random weights drops all its masks; this one keeps what does not overlap."""
    import torch

    sam = getattr(segmenter, "sam", None)
    if sam is not None:
        with torch.no_grad():
            sam.model.mask_decoder.iou_prediction_head.proj_out.bias.fill_(1.0)
    generator = getattr(segmenter.config, "generator", None)
    if generator is not None:
        segmenter.config = replace(segmenter.config, generator=replace(generator, stability_threshold=0.0))


def training(stage: Stage) -> None:
    """A row a recipe."""
    from lexiseg.methods import RECIPES

    names = [name for name in RECIPES if name.endswith("-tiny")]
    if stage.tiny:
        names = ["catseg-tiny"]
    rows: Rows = []
    for name in names:
        if stage.left < 4:
            rows.append({"recipe": name, "error": "no time left"})
            continue
        limit = stage.left - 1 if stage.tiny else min(stage.left - 1, 25)
        rows.append(apart(lambda told: _train(stage, told), {"recipe": name}, limit))
        stage.keep(rows)
    stage.keep(rows)


def _train(stage: Stage, row: dict[str, Any]) -> None:
    import torch

    from lexiseg.methods import recipe_named
    from lexiseg.methods.recipe import with_overrides
    from lexiseg.training.logger import read_log
    from lexiseg.training.loop import train

    steps = 1 if stage.tiny else 10
    settings = [f"log_every={steps}", "save_every=1000000"] + (["batch_size=2"] if stage.tiny else [])
    recipe = with_overrides(recipe_named(row["recipe"]), settings)
    row["batch"] = recipe.batch_size
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        train(recipe, folder, device=stage.device, workers=0 if stage.tiny else 8, until=2 * steps)
        row["wall_s"] = round(time.perf_counter() - began, 1)
        for number, line in enumerate(read_log(Path(folder)), start=1):
            row[f"loss_{number}"] = round(line["loss"], 3)
            row["steps_per_s"] = round(
                line["images_per_second"] / recipe.batch_size, 2
            )  # of the second half; without waiting for data
    if stage.device == "cuda":
        row["GiB"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)


STAGES: dict[str, Callable[[Stage], None]] = {
    "environment": environment,
    "tests": tests,
    "parity": parity,
    "waits": waits,
    "full": full,
    "training": training,
}


# --- the whole ------------------------------------------------------------------------------------------------------


def table(rows: Rows) -> list[str]:
    """Rows as Markdown."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        cells = [f"{row[name]:.4g}" if isinstance(row.get(name), float) else str(row.get(name, "")) for name in names]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return lines


def report(found: dict[str, Any], out: Path) -> None:
    """All that is known so far."""
    (out / "gpu_check.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    lines = ["# GPU check", "", f"{found['started']}, {found['arguments']}"]
    for name, stage in found["stages"].items():
        lines += ["", f"## {name}: {stage['state']}, {stage['seconds']} s", "", *table(stage["rows"])]
        if stage.get("tail"):
            lines += ["", "```", *stage["tail"], "```"]
    (out / "gpu_check.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def a_picture(folder: Path, side: int) -> str:
    """A scene of the emoji world, or a made-up picture where that fails."""
    import numpy as np
    from PIL import Image

    command = ["world", "render", "--count", "1", "--size", str(side), "--output", str(folder / "s")]

    def render() -> None:
        from lexiseg.cli import main

        main(command)

    process = forked(render, folder / "picture.log")
    process.join(30)
    _end(process.pid)
    rendered = sorted((folder / "s/images").glob("*.png"))
    if rendered:
        return str(rendered[0])
    blocks = np.random.default_rng(0).integers(0, 255, (8, 8, 3)).repeat(32, 0).repeat(32, 1)
    Image.fromarray(blocks.astype(np.uint8)).save(folder / "blocks.png")
    return str(folder / "blocks.png")


def main() -> int:
    """All stages, or one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=4.0, help="for everything")
    parser.add_argument("--tiny", action="store_true", help="try the check itself, on the CPU")
    parser.add_argument("--only", nargs="+", choices=list(STAGES), default=list(STAGES))
    arguments = parser.parse_args()
    out = Path(os.environ.get("OUT", ROOT / "build/gpu_check"))
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        return _all(arguments, Path(folder), out)


def _all(arguments: argparse.Namespace, folder: Path, out: Path) -> int:
    began = time.time()
    end = began + 60 * arguments.minutes
    found: dict[str, Any] = {"started": time.strftime("%Y-%m-%d %H:%M:%S"), "arguments": " ".join(sys.argv[1:]), "stages": {}}
    caches = {
        "LEXISEG_CACHE": f"{folder}/cache",
        "HF_HOME": f"{folder}/hub",
        "HF_HUB_OFFLINE": "1",
        "MPLCONFIGDIR": str(folder),
    }
    os.environ.update(caches)
    with suppress(Exception):  # the stages say what is wrong
        import open_clip  # noqa: F401

        import lexiseg.inference.pipeline
        import lexiseg.training.loop  # noqa: F401
    picture = a_picture(folder, 96 if arguments.tiny else 256)
    for number, phase in enumerate(LANES):
        shares = sum(share for other, share in SHARES.items() if other >= number)
        until = time.time() + (end - time.time()) * SHARES[number] / shares
        lanes = [[name for name in lane if name in arguments.only] for lane in phase]
        running: dict[int, tuple[str, BaseProcess, float]] = {}
        while any(lanes) or running:
            for place, lane in enumerate(lanes):
                if place not in running and lane:
                    name = lane.pop(0)
                    running[place] = name, _started(name, arguments, until, picture, folder), time.time()
            for place, (name, process, start) in list(running.items()):
                late = time.time() > until
                if process.is_alive() and not late:
                    continue
                _end(process.pid)
                process.join()
                state = "out of time" if late else "done" if process.exitcode == 0 else f"ended with {process.exitcode}"
                stages = {**found["stages"], name: _finished(name, state, time.time() - start, folder)}
                found["stages"] = {name: stages[name] for name in STAGES if name in stages}
                report(found, out)
                print(f"{name}: {state}, {time.time() - start:.0f} s, {len(found['stages'][name]['rows'])} rows", flush=True)
                del running[place]
            time.sleep(0.05)
    print(f"gpu_check: {time.time() - began:.0f} s, {out / 'gpu_check.md'}")
    return int(any(stage["state"].startswith("ended") for stage in found["stages"].values()))


def _started(name: str, arguments: argparse.Namespace, until: float, picture: str, folder: Path) -> BaseProcess:
    stage = Stage("cpu" if arguments.tiny else "cuda", arguments.tiny, until, picture, folder / f"{name}.json")

    def work() -> None:
        if name in ("parity", "waits"):  # for tests run beside them
            import torch

            torch.set_num_threads(min(4, torch.get_num_threads()))
        STAGES[name](stage)

    return forked(work, folder / f"{name}.log")


def _finished(name: str, state: str, seconds: float, folder: Path) -> dict[str, Any]:
    path, log = folder / f"{name}.json", folder / f"{name}.log"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    tail = [] if state == "done" else log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
    return {"state": state, "seconds": round(seconds, 1), "rows": rows, "tail": tail}


if __name__ == "__main__":
    sys.exit(main())
