"""The training loop: trains a recipe, and resumes an interrupted training exactly.

The folder of a training holds ``checkpoint.pt`` (to resume from), ``metrics.jsonl`` and ``tensorboard/``, ``best/`` (the
weights with the best first validation metric) and at the end ``model/`` (the last weights, which papers report).
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lexiseg.errors import RunError, UsageError, WeightsError
from lexiseg.methods import model_named
from lexiseg.methods.recipe import Recipe, Trainable
from lexiseg.methods.weights import check, save_segmenter
from lexiseg.ops.files import write_json
from lexiseg.ops.locks import locked
from lexiseg.training.batches import Batch, batches, points_of, seed_of
from lexiseg.training.checkpoint import (
    CHECKPOINT,
    fill_trained,
    read_checkpoint,
    trained_state,
    unusable,
    write_checkpoint,
)
from lexiseg.training.dist import DistContext, distributed
from lexiseg.training.examples import open_examples
from lexiseg.training.logger import MetricLogger, MetricWindow
from lexiseg.training.objective import Objective, fiser_of
from lexiseg.training.optimiser import clip_gradients, optimiser_of, set_lr
from lexiseg.training.text_sampler import TextSampler
from lexiseg.training.validation import Validation

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def train(
    recipe: Recipe,
    folder: str | Path,
    *,
    root: str | Path | None = None,
    weights: Mapping[str, str] | None = None,
    device: str | torch.device = "auto",
    workers: int = 2,
    until: int | None = None,
) -> Path | None:
    """Train a recipe; resumes from the checkpoint in ``folder`` if there is one.

    Args:
        recipe: recipe to train.
        folder: folder of this training alone.
        root: folder of the catalogue's data sets.
        weights: local files in place of the published weights of frozen parts, by part; under the method's key trained
            weights to begin with.
        device: device, as in `lexiseg.training.dist.distributed`.
        workers: data-loading processes for each process of the training.
        until: stop with a checkpoint after this step; None: train to the end.

    Returns:
        The folder of the trained weights; None if the training is not complete.

    Raises:
        UsageError: the recipe does not fit its model, the number of processes, or the checkpoint in ``folder``.
        DataError, ImageError: the data cannot be read.
        OutputError: another process trains in ``folder``, or it cannot be written.
        RunError: the loss or the gradient is not finite; the batch is saved.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once a checkpoint is written.
    """
    with distributed(device) as dist, locked(folder) if dist.is_main else nullcontext():
        return _Training(recipe, Path(folder), root, dict(weights or {}), dist, workers).run(until or recipe.steps)


class _Training:
    """State of a running training; methods are in the order of their use."""

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        root: str | Path | None,
        weights: Mapping[str, str],
        dist: DistContext,
        workers: int,
    ) -> None:
        if recipe.batch_size % (dist.world_size * recipe.grad_accum_steps):
            raise UsageError(
                f"a batch of {recipe.batch_size} cannot be divided among {dist.world_size} processes in "
                f"{recipe.grad_accum_steps} parts each; change batch_size= or grad_accum_steps="
            )
        self.recipe, self.folder, self.dist, self.workers = recipe, folder, dist, workers
        state = read_checkpoint(folder / CHECKPOINT, recipe)
        self.examples = open_examples(recipe.data, root, seed=recipe.seed)
        torch.manual_seed(seed_of(recipe.seed))
        model = model_named(recipe.name)
        self.backbones, self.start = model.origins(weights), model.start_origin(weights)
        self.segmenter = model.untrained(weights, recipe.model).to(dist.device)
        if not isinstance(self.segmenter, Trainable):
            raise UsageError(f"{recipe.name} cannot be trained: it has no loss")
        self.fiser = fiser_of(self.segmenter, recipe.fiser)
        if self.fiser is not None:
            self.fiser.to(dist.device)
        self.segmenter.training_classes = self.examples.vocabulary.class_names
        self.text_sampler = TextSampler(
            self.segmenter, self.examples.vocabulary, dist.device, max_classes=recipe.max_classes_per_batch, seed=recipe.seed
        )
        self.validation = Validation(
            recipe.validation,
            recipe.validate_limit,
            self.examples.vocabulary,
            folder,
            None if root is None else Path(root),
            dist,
        )
        self.scaler = torch.amp.GradScaler(dist.device.type, enabled=recipe.precision == "float16")
        self.step, self.best, self.average, self.window = 0, -math.inf, {}, MetricWindow()
        self.stage = -1
        if recipe.ema_decay:
            self.average = {name: value.clone() for name, value in trained_state(self.segmenter).items()}
        if state is not None:
            try:
                self._resume(state)
            except (LookupError, TypeError, ValueError, AttributeError, WeightsError) as error:  # the file may hold anything
                raise unusable(folder / CHECKPOINT, error) from error
        elif dist.is_main:
            write_json(folder / "recipe.json", recipe.to_dict(), indent=1)

    def run(self, until: int) -> Path | None:
        recipe, is_main = self.recipe, self.dist.is_main
        logger = MetricLogger(self.folder, self.step, recipe.steps, writes=is_main)
        stream = batches(
            self.examples,
            recipe.jitter,
            seed=recipe.seed,
            batch_size=recipe.batch_size,
            first=self.step,
            steps=until,
            rank=self.dist.rank,
            world_size=self.dist.world_size,
            workers=self.workers,
        )
        try:
            with _stopping() as stop:
                for batch in stream:
                    self._step(batch)
                    self._record(logger)
                    if stop.is_set() or self.step == until or self.step % recipe.save_every == 0:
                        self._save()
                    if stop.is_set():
                        raise KeyboardInterrupt
        finally:
            logger.close()
        return self._finish() if self.step == recipe.steps else None

    def _step(self, batch: Batch) -> None:
        began = time.perf_counter()
        self._enter_stage()
        torch.manual_seed(seed_of(self.recipe.seed, self.step, self.dist.rank))  # dropout depends on the step only
        losses: dict[str, Tensor] = {}
        parts = batch.to(self.dist.device).parts(self.recipe.grad_accum_steps)
        for number, part in enumerate(parts, start=1):
            with self._no_sync() if number < len(parts) else nullcontext():
                part_losses = self._losses(part)
                total = torch.stack(list(part_losses.values())).sum()
                self.scaler.scale(total / len(parts)).backward()
            for name, loss in part_losses.items():
                losses[name] = losses.get(name, 0) + loss.detach() / len(parts)
        norm = self._update(batch, losses)
        self.step += 1
        self.window.add(losses, norm, time.perf_counter() - began)

    def _enter_stage(self) -> None:
        """Create the optimiser if a stage begins; set the learning rate of the step."""
        number, step = self.recipe.stage_of(self.step)
        if number != self.stage:
            self.stage = number
            self.optimiser = optimiser_of(self.segmenter, self.recipe.stages[number], self.fiser)
            self.segmenter.train()
            self.objective: nn.Module = Objective(self.segmenter, self.text_sampler, self.recipe, self.fiser)
            if self.dist.world_size > 1:
                self.objective = DistributedDataParallel(self.objective, broadcast_buffers=False)
        set_lr(self.optimiser, self.recipe.stages[number].lr_at(step))

    def _no_sync(self) -> AbstractContextManager[None]:
        """Disable gradient synchronisation across processes."""
        return self.objective.no_sync() if isinstance(self.objective, DistributedDataParallel) else nullcontext()

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        precision = self.recipe.precision
        with torch.autocast(self.dist.device.type, DTYPES[precision], enabled=precision != "float32"):
            losses: dict[str, Tensor] = self.objective(batch, points_of(batch.positions, self.recipe.seed, self.dist.device))
        return losses

    def _update(self, batch: Batch, losses: dict[str, Tensor]) -> float:
        """Step the optimiser and the moving average. Returns the norm of the gradient."""
        total = self.dist.mean(torch.stack([*losses.values()]))
        if not bool(total.isfinite().all()):
            self._fail(batch, dict(zip(losses, total.tolist(), strict=True)))
        losses.update(zip(losses, total, strict=True))
        self.scaler.unscale_(self.optimiser)
        norm = clip_gradients(self.optimiser, self.recipe.stages[self.stage].max_grad_norm or math.inf)
        if not math.isfinite(norm) and not self.scaler.is_enabled():
            self._fail(batch, {"the norm of the gradient": norm})
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        if self.average:
            for name, value in trained_state(self.segmenter).items():
                if value.is_floating_point():
                    self.average[name].lerp_(value, 1 - self.recipe.ema_decay)
        return norm

    def _fail(self, batch: Batch, numbers: Mapping[str, float]) -> None:
        """Save the batch and raise RunError for the first number that is not finite."""
        path = self.folder / f"bad-batch-{self.dist.rank}.pt"
        content = {
            "step": self.step,
            "positions": list(batch.positions),
            "pixels": batch.images.pixels.cpu(),
            "masks": [target.masks.cpu() for target in batch.targets],
            "labels": [target.labels.cpu() for target in batch.targets],
        }
        write_checkpoint(path, content)
        bad = next(f"{name} is {value}" for name, value in numbers.items() if not math.isfinite(value))
        raise RunError(
            f"step {self.step}: {bad}. The batch is saved in {path}, the last checkpoint is of an earlier step; try a lower "
            "lr=, or precision=float32"
        )

    def _record(self, logger: MetricLogger) -> None:
        """Log and validate if they are due at this step."""
        recipe, last = self.recipe, self.step == self.recipe.steps
        logger.advance({"loss": self.window.last, "lr": self.optimiser.param_groups[0]["lr"]})
        if self.step % recipe.log_every == 0 or last:
            extra = {"lr": recipe.stages[self.stage].lr_at(recipe.stage_of(self.step - 1)[1]), **self._memory()}
            logger.write(self.step, {**self.window.means(recipe.batch_size), **extra})
            self.window = MetricWindow()
        if self.validation.datasets and (self.step % recipe.validate_every == 0 or last):
            with self._evaluated():
                numbers = self.validation(self.segmenter, self.step)
                logger.write(self.step, numbers)
                if (first := next(iter(numbers.values()))) > self.best:
                    self.best = first
                    if self.dist.is_main:
                        save_segmenter(self.segmenter, self.folder / "best", self._card(numbers))

    def _memory(self) -> dict[str, float]:
        device = self.dist.device
        return {"memory_GiB": torch.cuda.max_memory_allocated(device) / 2**30} if device.type == "cuda" else {}

    @contextmanager
    def _evaluated(self) -> Iterator[None]:
        """Put the segmenter in evaluation mode, with the averaged weights if there are any."""
        trained = {name: value.clone() for name, value in trained_state(self.segmenter).items()} if self.average else {}
        self.segmenter.eval()
        try:
            if self.average:
                fill_trained(self.segmenter, self.average)
            yield
        finally:
            if self.average:
                fill_trained(self.segmenter, trained)
            self.segmenter.train()

    def _save(self) -> None:
        if self.dist.is_main:
            state = {
                "step": self.step,
                "segmenter": trained_state(self.segmenter),
                "fiser": {} if self.fiser is None else self.fiser.state_dict(),
                "average": self.average,
                "optimiser": self.optimiser.state_dict(),
                "scaler": self.scaler.state_dict(),
                "best": self.best,
                "window": asdict(self.window),
                "recipe": self.recipe.to_dict(),
            }
            write_checkpoint(self.folder / CHECKPOINT, state)

    def _resume(self, state: Mapping[str, Any]) -> None:
        self.step, self.best, self.window = state["step"], state["best"], MetricWindow(**state["window"])
        path = self.folder / CHECKPOINT
        fill_trained(self.segmenter, state["segmenter"], path)
        if self.fiser is not None:
            check(state["fiser"], self.fiser.state_dict(), path)
            self.fiser.load_state_dict(state["fiser"])
        if self.average:
            check(state["average"], self.average, path)
        self.average = {name: value.to(self.dist.device) for name, value in state["average"].items()}
        self.scaler.load_state_dict(state["scaler"])
        if self.step < self.recipe.steps:
            self._enter_stage()
            if self.recipe.stage_of(self.step)[1] > 0:  # a stage begins with a new optimiser
                self.optimiser.load_state_dict(state["optimiser"])

    def _finish(self) -> Path:
        target = self.folder / "model"
        with self._evaluated():
            if self.dist.is_main:
                save_segmenter(self.segmenter, target, self._card({}))
        self.dist.barrier()
        return target

    def _card(self, numbers: Mapping[str, float]) -> dict[str, Any]:
        return {
            "model": self.recipe.name,
            "backbones": self.backbones,
            **({"start": self.start} if self.start else {}),
            "step": self.step,
            "recipe": self.recipe.to_dict(),
            "validation": dict(numbers),
        }


@contextmanager
def _stopping() -> Iterator[Event]:
    """Yield an event that the first Ctrl-C or SIGTERM sets; a second one has its usual effect."""
    stop, handlers = Event(), dict[int, Any]()

    def request_stop(number: int, _: object) -> None:
        stop.set()
        signal.signal(number, handlers[number])

    for number in (int(signal.SIGINT), int(signal.SIGTERM)):
        handlers[number] = signal.signal(number, request_stop)
    try:
        yield stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
