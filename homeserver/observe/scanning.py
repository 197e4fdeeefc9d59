"""Metrics of scanning files."""

from prometheus_client import CollectorRegistry, Counter, Gauge


class ScanMetrics:
    """Tells of scans in /metrics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.scans = Counter(
            "mahalla_media_scans",
            "Files that were shown to the scanners, by outcome: clean, harmful, failed (it is tried again)",
            ("outcome",),
            registry=registry,
        )
        self.seconds = Counter(
            "mahalla_media_scan_seconds", "Time that scans took", registry=registry
        )
        self.bytes = Counter(
            "mahalla_media_scan_bytes", "Bytes of files that were scanned", registry=registry
        )
        self.waiting = Gauge(
            "mahalla_media_scans_waiting",
            "Files that wait for a scan: for the first one, or for another",
            ("scan",),
            registry=registry,
        )
