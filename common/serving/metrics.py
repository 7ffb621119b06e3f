"""The metrics for Prometheus at /metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Metrics of one server; two servers in one process are separate."""

    def __init__(self):
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "serving_requests", "Requests answered.", ("model", "method", "protocol", "code"), registry=self.registry
        )
        self.seconds = Histogram(
            "serving_request_seconds", "Seconds from the last byte in to the first byte out.",
            ("model", "method", "protocol"), buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.batch_sizes = Histogram(
            "serving_batch_size", "Examples per batch.", ("model",), buckets=_SIZES, registry=self.registry
        )
        self.loads = Counter("serving_loads", "Versions loaded or not.", ("model", "outcome"), registry=self.registry)

    def page(self) -> bytes:
        """Return the page for Prometheus."""
        return generate_latest(self.registry)
