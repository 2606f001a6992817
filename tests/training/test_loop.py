"""What a training must keep: killed or not, by one process or two it is the same; and it says what goes wrong."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.testing import assert_close

from lexiseg.backbones.digests import digest_of
from lexiseg.errors import OutputError, RunError, UsageError, WeightsError
from lexiseg.methods import MODELS
from lexiseg.methods.fcclip.model import FcClip
from lexiseg.methods.weights import fill_from, read_card
from lexiseg.ops.names import file_name
from lexiseg.training import checkpoint, examples, loop
from lexiseg.training.logger import read_log
from lexiseg.training.loop import train
from tests import processes
from tests.training.recipes import catseg_recipe, recipe, trained

TIMED = {"seconds", "images_per_second"}  # the only numbers of a log that differ between two runs


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums in one order: the subprocesses compute on one thread, too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["segmenter"]


def log(folder: Path) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name not in TIMED} for row in read_log(folder)]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nothing interrupted."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    assert train(recipe(), folder, device="cpu", workers=0) == folder / "model"
    torch.set_num_threads(threads)
    return folder


def begun(folder: Path, *settings: str) -> ForkServerProcess:
    """A training in a process of its own that has written a checkpoint."""
    process = processes.context().Process(target=trained, args=(str(folder), settings))
    process.start()
    while not (folder / "checkpoint.pt").exists():
        assert process.is_alive(), "it ended before its first checkpoint"
        time.sleep(0.002)
    return process


def killed(process: ForkServerProcess) -> None:
    process.kill()
    process.join()


def test_killed_and_started_again_is_never_killed(whole, tmp_path):
    killed(begun(tmp_path))
    reached = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"]
    assert 0 < reached < 8, "killed too late to show anything"
    train(recipe(), tmp_path, device="cpu", workers=0)
    assert same(weights(tmp_path), weights(whole))
    assert log(tmp_path) == log(whole)


def test_a_tuned_clip_goes_on_where_it_stopped(tmp_path):
    """Both towers learn, all but the keys; a stop changes nothing, and what comes out loads."""
    for folder, stops in (("one", (6,)), ("two", (3, 6))):
        for stop in stops:
            train(catseg_recipe(), tmp_path / folder, device="cpu", workers=0, until=stop)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert same(one, two)
    before = MODELS["catseg-test"].untrained().state_dict()
    moved = {name for name, values in one.items() if not torch.equal(values, before[name])}
    assert {name for name in moved if name.startswith("clip.")} == {
        name for name in one if name.startswith("clip.") and name.endswith("attn.in_proj_weight")
    }
    for name in (name for name in moved if name.startswith("clip.")):
        width = len(one[name]) // 3
        assert torch.equal(one[name][width : 2 * width], before[name][width : 2 * width])
    fresh = MODELS["catseg-test"].untrained()
    fill_from(fresh, tmp_path / "two/model", model="catseg-test")
    assert all(torch.equal(values, one[name]) for name, values in fresh.state_dict().items())


@pytest.mark.parametrize("stop", [3, 6, 7])  # within a line of the log, at a checkpoint, before the last step
def test_stopped_anywhere(whole, tmp_path, stop):
    assert train(recipe(), tmp_path, device="cpu", workers=0, until=stop) is None
    assert len(log(tmp_path)) == stop // 3
    train(recipe(), tmp_path, device="cpu", workers=0)
    assert same(weights(tmp_path), weights(whole))
    assert log(tmp_path) == log(whole)


def test_tensorboard_shows_the_log(whole):
    events = EventAccumulator(str(whole / "tensorboard")).Reload()
    shown = [(event.step, event.value) for event in events.Scalars("loss")]
    assert shown == [(row["step"], pytest.approx(row["loss"])) for row in log(whole)]


def test_a_finished_training_is_left_as_it_is(whole):
    before = weights(whole)
    assert train(recipe(), whole, device="cpu", workers=0) == whole / "model"
    assert same(weights(whole), before)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("signals", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_keeps_the_step(whole, tmp_path, monkeypatch, signals, workers):
    """A terminal, a cluster or a container sends the signal to the processes that prepare the pictures, too."""
    step = loop._Training._step

    def interrupted(self, batch):
        step(self, batch)
        if self.step == 5:
            preparing = multiprocessing.active_children()
            assert len(preparing) == workers
            for process in preparing:
                os.kill(process.pid, signals)
            os.kill(os.getpid(), signals)

    monkeypatch.setattr(loop._Training, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(recipe("save_every=100"), tmp_path, device="cpu", workers=workers)
    monkeypatch.undo()
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 5
    train(recipe(), tmp_path, device="cpu", workers=0)  # how often it saves may change on the way
    assert same(weights(tmp_path), weights(whole))


def test_two_processes_are_one(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}  # as torchrun sets them
    both = [
        processes.context().Process(
            target=trained, args=(str(tmp_path), ("log_every=1",), {**shared, "RANK": rank, "LOCAL_RANK": rank})
        )
        for rank in ("0", "1")
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(240)
    assert [process.exitcode for process in both] == [0, 0]
    alone = tmp_path / "alone"
    train(recipe("log_every=1"), alone, device="cpu", workers=0)
    pairs = list(zip(log(tmp_path), log(alone), strict=True))
    assert len(pairs) == 8
    for two, one in pairs:
        assert_close(two["loss"], one["loss"], rtol=1e-5, atol=0)


def test_who_prepares_the_pictures_makes_no_difference(whole, tmp_path):
    train(recipe(), tmp_path, device="cpu", workers=2)
    assert same(weights(tmp_path), weights(whole))


def test_the_seed_makes_one(whole, tmp_path):
    train(recipe("seed=1"), tmp_path, device="cpu", workers=0)
    assert not same(weights(tmp_path), weights(whole))


def test_what_is_frozen_stays_and_all_else_learns(whole):
    after = MODELS["fcclip-test"].untrained()
    torch.manual_seed(loop.seed_of(0))
    before = MODELS["fcclip-test"].untrained()
    card = fill_from(after, whole / "model")
    changed = {
        name
        for (name, one), other in zip(before.state_dict().items(), after.state_dict().values(), strict=True)
        if not torch.equal(one, other)
    }
    assert all(name.startswith(("pixel_decoder.", "mask_decoder.")) for name in changed)
    assert {name for name, _ in before.named_parameters() if not name.startswith("clip.")} <= changed
    assert card["model"] == "fcclip-test"
    assert card["step"] == 8


def test_it_goes_on_from_trained_weights(whole, tmp_path):
    """Fine-tuning: the first step has the weights of another training, which the card names."""
    given = {"fcclip": str(whole / "model")}
    begun = MODELS["fcclip-test"].untrained(given, recipe().model).state_dict()
    assert all(torch.equal(begun[name], values) for name, values in weights(whole).items())
    train(recipe("lr=1e-30", "seed=1"), tmp_path, weights=given, device="cpu", workers=0)
    for name, values in weights(tmp_path).items():
        assert_close(values, begun[name], atol=1e-5, rtol=1e-5)
    assert read_card(tmp_path / "model")["start"] == {
        "file": "model.safetensors", "sha256": digest_of(whole / "model/model.safetensors"),
    }  # fmt: skip


def test_trained_weights_of_another_size_are_refused(whole, tmp_path):
    with pytest.raises(WeightsError, match=r"does not fit this training: \w+\.\S+ has the shape .*model.OPTION"):
        train(recipe("model.hidden_dim=96"), tmp_path, weights={"fcclip": str(whole / "model")}, device="cpu", workers=0)
    with pytest.raises(WeightsError, match="fcclip-test"):
        train(catseg_recipe(), tmp_path / "b", weights={"catseg": str(whole / "model")}, device="cpu", workers=0)


def test_it_learns(tmp_path, monkeypatch):
    """One scene over and over: the loss must fall to a part of what it was."""
    monkeypatch.setattr(examples, "WORLD_SCENES", 1)
    still = ("jitter.min_scale=1.0", "jitter.max_scale=1.0", "jitter.mirror=0.0")
    train(recipe("steps=60", "lr=5e-3", *still), tmp_path, device="cpu", workers=0)
    rows = log(tmp_path)
    assert rows[-1]["loss"] < 0.4 * rows[0]["loss"]


def test_accumulated_batches_learn_about_the_same(whole, tmp_path):
    train(recipe("grad_accum_steps=2"), tmp_path, device="cpu", workers=0)
    ours, others = log(tmp_path), log(whole)
    assert_close(ours[0]["loss"], others[0]["loss"], rtol=0.05, atol=0)  # each part is normalised by its own targets
    assert ours != others


def test_the_moving_average_is_what_is_kept(tmp_path):
    train(recipe("ema_decay=0.5"), tmp_path, device="cpu", workers=0, until=7)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    train(recipe("ema_decay=0.5"), tmp_path, device="cpu", workers=0)
    last = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    name = "mask_decoder.norm.weight"
    assert_close(last["average"][name], 0.5 * state["average"][name] + 0.5 * last["segmenter"][name])
    model = MODELS["fcclip-test"].untrained()
    fill_from(model, tmp_path / "model")
    assert torch.equal(model.state_dict()[name], last["average"][name])


def test_stages_have_optimisers_of_their_own(tmp_path):
    stages = recipe().stages[0]
    two = replace(
        recipe(), stages=(replace(stages, steps=4, parts=("pixel_decoder",)), replace(stages, steps=4, parts=("mask_decoder",)))
    )
    train(two, tmp_path / "a", device="cpu", workers=0, until=4)
    first = weights(tmp_path / "a")
    torch.manual_seed(loop.seed_of(0))
    start = MODELS["fcclip-test"].untrained({}, two.model).state_dict()
    assert all(torch.equal(first[name], start[name]) for name in first if name.startswith("mask_decoder."))
    assert any(not torch.equal(first[name], start[name]) for name in first if name.startswith("pixel_decoder."))
    train(two, tmp_path / "a", device="cpu", workers=0)
    last = weights(tmp_path / "a")
    assert all(torch.equal(first[name], last[name]) for name in first if name.startswith("pixel_decoder."))
    assert any(not torch.equal(first[name], last[name]) for name in first if name.startswith("mask_decoder."))
    train(two, tmp_path / "b", device="cpu", workers=0)
    assert same(weights(tmp_path / "b"), last)


@pytest.mark.parametrize("precision", ["bfloat16"])
def test_mixed_precision_stays_near(whole, tmp_path, precision):
    train(recipe(f"precision={precision}"), tmp_path, device="cpu", workers=0)
    assert_close(log(tmp_path)[0]["loss"], log(whole)[0]["loss"], rtol=0.05, atol=0)


def test_a_loss_that_is_no_number_stops_it(tmp_path, monkeypatch):
    loss = FcClip.loss

    def broken(self, images, text, targets, options=None, draw=None):
        found = loss(self, images, text, targets, options, draw)
        broken.calls += 1
        return {**found, "mask": found["mask"] * float("nan")} if broken.calls == 4 else found

    broken.calls = 0
    monkeypatch.setattr(FcClip, "loss", broken)
    with pytest.raises(RunError, match=r"step 3: mask is nan.*bad-batch-0\.pt"):
        train(recipe(), tmp_path, device="cpu", workers=0)
    kept = torch.load(tmp_path / "bad-batch-0.pt", weights_only=True)
    assert kept["pixels"].shape == (2, 3, 64, 64)
    assert kept["positions"] == [6, 7]
    assert [len(masks) for masks in kept["masks"]] == [len(labels) for labels in kept["labels"]]
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2


def test_measured_on_the_way(tmp_path):
    settings = ("steps=4", "validate_every=2", "validate_limit=3", "validation=world:val:64,world:style:64")
    train(recipe(*settings), tmp_path, device="cpu", workers=0)
    measured = [row for row in log(tmp_path) if "world:val:64/PQ" in row]
    assert [row["step"] for row in measured] == [2, 4]
    assert {"world:val:64/mIoU", "world:val:64/mIoU seen", "world:style:64/mIoU unseen"} <= measured[0].keys()
    best = read_card(tmp_path / "best")
    assert best is not None
    assert best["step"] in {2, 4}
    assert list((tmp_path / "validation").iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["seed=3"], "seed=0, now it is 3; choose another --output"),
        (["lr=0.5"], r"stages\.0\.lr=0\.002, now it is 0\.5"),
        (["model.num_queries=7"], r"model\.num_queries=9"),
    ],
)
def test_a_folder_is_of_one_training(whole, settings, words):
    with pytest.raises(UsageError, match=words):
        train(recipe(*settings), whole, device="cpu", workers=0)


def test_batches_that_cannot_be_shared(tmp_path):
    with pytest.raises(UsageError, match="batch of 2 cannot be divided among 1 processes in 3 parts"):
        train(recipe("grad_accum_steps=3"), tmp_path, device="cpu")


def _without(state, key):
    return {name: value for name, value in state.items() if name != key}


DAMAGES = {
    "no checkpoint": lambda _: b"no checkpoint",
    "empty": lambda _: b"",
    "a list": lambda _: [],
    "only a step": lambda state: {"step": 8, "recipe": state["recipe"]},
    "another recipe's form": lambda state: {**state, "recipe": 3},
    "no weights": lambda state: {**state, "segmenter": {}},
    "weights that are none": lambda state: {**state, "segmenter": None},
    "one weight less": lambda state: {**state, "segmenter": dict(list(state["segmenter"].items())[1:])},
    "weights of another shape": lambda state: {**state, "segmenter": {name: torch.zeros(1) for name in state["segmenter"]}},
    "no optimiser": lambda state: {**state, "optimiser": {}},
    "an optimiser of other parameters": lambda state: {
        **state,
        "optimiser": {**state["optimiser"], "param_groups": state["optimiser"]["param_groups"][:1]},
    },
    "another window": lambda state: {**state, "window": {"x": 1}},
    "no number of steps": lambda state: {**state, "step": "eight"},
    **{f"without {key}": partial(_without, key=key) for key in ("average", "scaler", "best", "recipe")},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_a_line_with_a_way_out(whole, tmp_path, damage):
    path = tmp_path / "checkpoint.pt"
    train(recipe(), tmp_path, device="cpu", workers=0, until=2)
    content = DAMAGES[damage](torch.load(path, weights_only=True))
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(RunError, match=r"checkpoint\.pt is no checkpoint of this training \(.+\); delete it") as caught:
        train(recipe(), tmp_path, device="cpu", workers=0)
    assert "\n" not in str(caught.value)
    path.unlink()
    train(recipe(), tmp_path, device="cpu", workers=0)
    assert same(weights(tmp_path), weights(whole))
    assert log(tmp_path) == log(whole)


@pytest.mark.parametrize("torn", [b'{"step": 2', b"[]\n", b"\xff\xfe\n", b'{"loss": 1}\n', b'{"step": null}\n'])
def test_a_log_that_was_cut_short_is_mended(tmp_path, torn):
    train(recipe("log_every=1"), tmp_path, device="cpu", workers=0, until=3)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    with (tmp_path / "metrics.jsonl").open("ab") as stream:
        stream.write(torn)
    train(recipe("log_every=1"), tmp_path, device="cpu", workers=0, until=4)
    after = (tmp_path / "metrics.jsonl").read_bytes()
    assert after.startswith(before)
    assert [row["step"] for row in log(tmp_path)] == [1, 2, 3, 4]


def test_a_folder_has_one_training_at_a_time(tmp_path):
    process = begun(tmp_path, "steps=100000")
    try:
        with pytest.raises(OutputError, match=rf"is in use by process {process.pid} on .*; wait for its end"):
            train(recipe("steps=100000"), tmp_path, device="cpu", workers=0)
    finally:
        killed(process)
    train(recipe("steps=100000"), tmp_path, device="cpu", workers=0, until=3)  # a dead one's lock keeps nobody out


def test_a_measurement_of_a_killed_training_is_not_in_the_way(tmp_path):
    settings = ("steps=2", "validate_every=2", "validate_limit=2", "validation=world:val:64")
    left = tmp_path / f"validation/{file_name('world:val:64', 'world:val:64')}-2"
    left.mkdir(parents=True)
    (left / "protocol.json").write_text('{"weights": "of the killed one, which a GPU does not give again"}')
    train(recipe(*settings), tmp_path, device="cpu", workers=0)
    assert "world:val:64/PQ" in log(tmp_path)[-1]
    assert list((tmp_path / "validation").iterdir()) == []


def test_a_checkpoint_is_whole_or_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    checkpoint.write_checkpoint(path, {"step": 1})
    monkeypatch.setattr(torch, "save", _half_written)
    with pytest.raises(OutputError, match=r"cannot write .*checkpoint\.pt"):
        checkpoint.write_checkpoint(path, {"step": 2})
    monkeypatch.undo()
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def _half_written(_, stream):
    stream.write(b"half")
    raise OSError(28, "No space left on device")
