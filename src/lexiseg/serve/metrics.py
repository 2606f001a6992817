"""Metrics of the service, in Prometheus' text format. They have no names of classes, pictures or clients."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from lexiseg.serve.jobs import Job

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """Counters of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("lexiseg_requests", "Answered requests", ["route", "status"], registry=self.registry)
        self.request_seconds = Histogram(
            "lexiseg_request_seconds", "Seconds to an answer", ["route"], buckets=SECONDS, registry=self.registry
        )
        self.stage_seconds = Histogram(
            "lexiseg_stage_seconds",
            "Seconds of a picture in a stage; those of a batch count in full for each of its pictures",
            ["model", "stage"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.batch = Histogram(
            "lexiseg_batch_pictures",
            "Pictures computed together",
            ["model"],
            buckets=(1, 2, 4, 8, 16, 32),
            registry=self.registry,
        )
        self.left = Counter("lexiseg_clients_left", "Requests whose client left before the answer", registry=self.registry)
        self.open = Gauge("lexiseg_requests_open", "Accepted requests without an answer", registry=self.registry)
        self.queued = Gauge("lexiseg_requests_queued", "Requests that wait for the worker", registry=self.registry)
        self.models = Gauge("lexiseg_models_loaded", "Models in memory", registry=self.registry)

    def observe(self, model: str, size: int, jobs: Sequence[Job]) -> None:
        """Count a batch of jobs that were computed."""
        self.batch.labels(model).observe(size)
        for job in jobs:
            for stage, seconds in job.seconds.items():
                self.stage_seconds.labels(model, stage).observe(seconds)

    def text(self) -> bytes:
        """Return all metrics."""
        return generate_latest(self.registry)
