"""Metrics of media scanning."""

from prometheus_client import CollectorRegistry, Counter, Gauge


class ScanMetrics:
    """Metrics of media scans."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.scans = Counter(
            "mahalla_media_scans",
            "Scanned files, by outcome: clean, harmful, failed (will be retried)",
            ("outcome",),
            registry=registry,
        )
        self.seconds = Counter("mahalla_media_scan_seconds", "Time in scans", registry=registry)
        self.bytes = Counter(
            "mahalla_media_scan_bytes", "Bytes of scanned files", registry=registry
        )
        self.waiting = Gauge(
            "mahalla_media_scans_waiting",
            "Files that wait for their first scan or for another one",
            ("scan",),
            registry=registry,
        )
