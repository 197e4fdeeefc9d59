"""Wires the checks of media files: virus scanners, forbidden file types, plug-ins."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry
from twisted.internet.interfaces import IReactorTime

from homeserver.cluster.jobs import Job
from homeserver.config.configuration import Config
from homeserver.config.scanning import MediaScanningOptions, split_clamd
from homeserver.observe.scanning import ScanMetrics
from homeserver.services.plugins.hooks import Plugins
from homeserver.services.scanning.administration import ScanAdministration
from homeserver.services.scanning.clamd import ClamdScanner
from homeserver.services.scanning.connection import ScannerAddress
from homeserver.services.scanning.gate import NoScanGate, ScanGate
from homeserver.services.scanning.icap import ICAPScanner
from homeserver.services.scanning.rescans import Rescans
from homeserver.services.scanning.rules import ForbiddenTypes, PluginRules
from homeserver.services.scanning.scanner import Scanner
from homeserver.services.scanning.scanners import Scanners
from homeserver.services.scanning.scanning import MediaScanner
from storage.engine.database import Database
from storage.engine.executors import Executor
from storage.media.contents import MediaContents
from storage.media.quarantine import QuarantineStore
from storage.media.rescans import MediaRescanStore
from storage.media.scans import MediaScanStore

NO_LIMIT = 2**62


def scans_files(config: Config) -> bool:
    """Whether files are scanned: a scanner is configured, or there are plug-ins, any of which may
    check files."""
    scanning = config.storage.media_scanning
    return bool(
        scanning.clamd or scanning.icap or scanning.forbidden_types or config.upstream.plugins
    )


def make_rescan_store(scanning: MediaScanningOptions, database: Database) -> MediaRescanStore:
    """Return the store of rescans."""
    return MediaRescanStore(database=database, kinds=scanning.files, max_size=scanning.max_size)


def scan_threads(scanning: MediaScanningOptions) -> int:
    """Return the number of threads that wait for scanners."""
    has_program = scanning.clamd is not None or scanning.icap is not None
    return scanning.concurrency + scanning.encrypted_concurrency if has_program else 1


class ScanningParts:
    """The services for scanning, if there is a scanner. Public attributes are for the other parts
    and the router."""

    def __init__(
        self,
        *,
        scanning: MediaScanningOptions,
        clock: IReactorTime,
        database: Database,
        contents: MediaContents,
        own: str,
        quarantine: QuarantineStore,
        plugins: Plugins,
        threads: Executor,
        registry: CollectorRegistry,
    ) -> None:
        """`own`: this server's name. `threads` wait for scanners."""
        self.store = MediaScanStore(database=database, quarantine=quarantine)
        self.gate: ScanGate = NoScanGate()
        self.scanning: MediaScanner | None = None
        self.largest_copy = self.largest_upload = NO_LIMIT
        """Larger copies of remote files, and larger uploads, are refused: they could never be
        served."""
        self._rescans: Rescans | None = None
        metrics = ScanMetrics(registry)
        found = _scanners_of(scanning, plugins, threads)
        if found:
            rescan_store = make_rescan_store(scanning, database)
            scanners = Scanners(clock=clock, scanners=found)
            self._rescans = Rescans(
                clock=clock,
                store=rescan_store,
                scanners=scanners,
                on_new_signatures=scanning.rescan_on_new_signatures,
                interval_ms=scanning.rescan_interval,
                newer_than_ms=scanning.rescan_newer_than,
            )
            self.gate = self.scanning = MediaScanner(
                clock=clock,
                database=database,
                store=self.store,
                rescans=rescan_store,
                contents=contents,
                scanners=scanners,
                metrics=metrics,
                kinds=scanning.files,
                max_size=scanning.max_size,
                passes_larger=scanning.oversized_files == "pass",
                passes_unscanned=scanning.unreachable == "pass",
                max_concurrent=scanning.concurrency,
                max_concurrent_decrypted=scanning.encrypted_concurrency,
                time_limit_ms=scanning.timeout,
                upload_wait_ms=scanning.upload_wait,
            )
            if scanning.oversized_files == "refuse":
                self.largest_copy = scanning.max_size if "remote" in scanning.files else NO_LIMIT
                self.largest_upload = scanning.max_size if "local" in scanning.files else NO_LIMIT
        self.administration = ScanAdministration(
            clock=clock, own=own, store=self.store, rescans=self._rescans
        )

    def jobs(self) -> Sequence[Job]:
        """Return the background jobs."""
        if self.scanning is None or self._rescans is None:
            return ()
        return (
            Job("scan_media", self.scanning.do_scan_pending, 10.0),
            Job("queue_media_rescan", self._rescans.do_mark, 30.0),
            Job("check_scanner_versions", self._rescans.do_check_version, 60.0),
            Job(
                "delete_old_encrypted_file_scans", self.scanning.do_delete_decrypted_verdicts, 600.0
            ),
        )


def _scanners_of(
    scanning: MediaScanningOptions, plugins: Plugins, threads: Executor
) -> Sequence[Scanner]:
    """Return the scanners, cheap ones first: a file that one refuses is not sent to the next."""
    found: list[Scanner] = []
    seconds = scanning.timeout / 1000
    if scanning.forbidden_types:
        found.append(ForbiddenTypes(scanning.forbidden_types))
    if plugins.check_files:
        found.append(PluginRules(plugins))
    if scanning.clamd is not None:
        found.append(
            ClamdScanner(
                place=ScannerAddress(*split_clamd(scanning.clamd)),
                executor=threads,
                seconds=seconds,
            )
        )
    if scanning.icap is not None:
        found.append(
            ICAPScanner(
                url=scanning.icap, method=scanning.icap_method, executor=threads, seconds=seconds
            )
        )
    return found
