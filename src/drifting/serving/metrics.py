"""What a service counts, in the format of Prometheus."""

from collections.abc import Callable


class Metrics:
    """The figures of one service. All are in a registry of its own.

    Args:
        in_hand: returns the number of requests that are not answered yet.
    """

    def __init__(self, in_hand: Callable[[], int]) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        own = self._registry
        sizes, shares = [2.0**power for power in range(0, 13, 2)], [2.0**power for power in range(7)]
        count, seconds = "Requests that were answered.", "Seconds from a request to its answer."
        self._answers = Counter("drifting_requests", count, ["path", "status"], registry=own)
        self._seconds = Histogram("drifting_request_seconds", seconds, ["path"], registry=own)
        self._samples = Counter("drifting_samples", "Samples that were made.", registry=own)
        self._passes = Histogram("drifting_pass_samples", "Samples of one pass of the generator.", registry=own, buckets=sizes)
        self._shared = Histogram("drifting_pass_requests", "Requests that share one pass.", registry=own, buckets=shares)
        Gauge("drifting_requests_in_hand", "Requests that are not answered yet.", registry=own).set_function(in_hand)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """Count an answer."""
        self._answers.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def pass_made(self, samples: int, requests: int) -> None:
        """Count a pass."""
        self._samples.inc(samples)
        self._passes.observe(samples)
        self._shared.observe(requests)

    def page(self) -> tuple[bytes, str]:
        """Return all figures, and the type of this text."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self._registry), CONTENT_TYPE_LATEST
