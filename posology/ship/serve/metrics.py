"""What Prometheus may know: counts, times and sizes, by route and model, never anything of a text."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_TOKENS = tuple(2.0**power for power in range(4, 14))
TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        disable_created_metrics()
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        by_route = ["route", "method"]
        self._requests = Counter(
            "posology_requests", "Answers by status of HTTP.", [*by_route, "status"], registry=registry
        )
        self._seconds = Histogram(
            "posology_request_seconds", "From headers to answer.", by_route, buckets=_SECONDS, registry=registry
        )
        self._documents = Counter(
            "posology_documents", "Texts that a model has answered.", ["model"], registry=registry
        )
        self._row_tokens = Histogram(
            "posology_row_tokens", "Pieces that went through a model at once.", buckets=_TOKENS, registry=registry
        )
        self._row_requests = Histogram(
            "posology_row_requests", "Requests whose texts these were of.", buckets=_TOKENS, registry=registry
        )
        self._row_seconds = Histogram(
            "posology_row_seconds", "Seconds that they took.", buckets=_SECONDS, registry=registry
        )
        self._waiting = Gauge("posology_waiting_tokens", "Pieces that wait.", registry=registry)
        self._models = Gauge("posology_models", "Models that answer.", registry=registry)

    def follow(self, waiting: Callable[[], int], models: Callable[[], int]) -> None:
        """Lets gauges ask for their values."""
        self._waiting.set_function(waiting)
        self._models.set_function(models)

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Counts an answer; `route` is the template of its path."""
        if method not in ("GET", "POST", "PUT", "DELETE"):  # a client may call it what it likes
            method = "other"
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route, method).observe(seconds)

    def row(self, tokens: int, requests: int, seconds: float) -> None:
        """Counts a row; see `Batcher`."""
        self._row_tokens.observe(tokens)
        self._row_requests.observe(requests)
        self._row_seconds.observe(seconds)

    def answered(self, model: str, documents: int) -> None:
        """Counts texts."""
        self._documents.labels(model).inc(documents)

    def text(self) -> bytes:
        """In Prometheus' own format."""
        return generate_latest(self._registry)
