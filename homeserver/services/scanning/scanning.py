"""Scans files before anybody can download them. Files with the same content share one verdict.

A file is scanned when it arrives. If the scan fails, or a scanner is unavailable, a job scans the
file later. A download of a file without a verdict starts the scan and waits for it. A harmful file
is quarantined, as if an administrator had requested it. A finding in decrypted content quarantines
the encrypted file only if the finding is certain and an authenticated user sent the key. A finding
is certain if nobody could forge a key that decrypts the file to matching content
(`Scanners.is_conclusive`).

Laws:
- No file is served without a verdict, unless the configuration allows it.
- A file is streamed to the scanners from its storage; it is not written anywhere else.
- The number of concurrent scans is bounded, and each has a time limit. Scans are scheduled fairly
  among the owners of the files (users and servers). Scans of decrypted files have slots of their
  own, which are shared fairly among the requesters. So a user or server with many files or
  requests does not delay the others. The job has at most half of the slots.
- A file that could not be scanned is retried with increasing delays. Until the next attempt, a
  download does not start a scan.
- The server stores neither keys of encrypted files nor anything that reveals their content: only a
  verdict, under a hash of content and key.
"""

import hashlib
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine
from contextlib import aclosing
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as TookTooLong
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.peers.backoff_schedule import BackoffSchedule
from federation.peers.fair_semaphore import FairSemaphore
from federation.peers.shared_work import SharedWork
from federation.protocol.errors import (
    MatrixError,
    MediaHarmful,
    MediaTooLargeToScan,
    NotFound,
    NotYetUploaded,
    ScannersUnavailable,
    TooLarge,
)
from federation.protocol.ids import UserID
from federation.rooms.concurrency import map_concurrently
from homeserver.api.media_store_errors import media_store_error
from homeserver.observe.scanning import ScanMetrics
from homeserver.services.audit.audit import AuditEvent, record_event
from homeserver.services.plugins.hooks import FileToCheck
from homeserver.services.scanning.scanner import CannotScan, ScanFinding, ScannerUnavailable
from homeserver.services.scanning.scanners import Scanners
from storage.cache import LRU
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.media.contents import MediaContents, OpenedContent
from storage.media.media import MediaContent
from storage.media.rescans import FileKind, MediaRescanStore
from storage.media.scans import MediaScanStore, ScanRequest, ScanRow, ScanState

PIECE_BYTES: Final = 1 << 20
MAX_WAIT_MS: Final = 60_000
MAX_WAITING: Final = 1000
"""The maximum number of scans that wait in memory. Further ones are left to the job, or have to be
requested again."""
MAX_WAITING_PER_OWNER: Final = 50
COUNT_SECONDS: Final = 30.0
"""The interval for counting pending scans, which reads all of them."""
PAUSES: Final = BackoffSchedule(5_000, 60_000)
"""The pause after a scanner was unavailable."""
SCANNER_RETRY_MS: Final = 60_000
"""The delay before a file is retried on which a scanner failed, or that was served because scanners
were unavailable."""
FILE_RETRY_MS: Final = 600_000
"""The delay before a file is retried that could not be scanned while others could; it doubles each
time."""
MAX_FILE_RETRY_MS: Final = 24 * 3600 * 1000
JOB_OWNER: Final = "job"
"""The owner in the queue for the job's scans; no user or server has this name."""
DECRYPTED_LIFETIME_MS: Final = 7 * 24 * 3600 * 1000
"""The time for which a clean verdict about a decrypted file is stored."""
MAX_FINDING_CHARS: Final = 300
MAX_CRASH_SUSPECTS: Final = 1000

Wrap = Callable[[AsyncGenerator[bytes, None]], AsyncGenerator[bytes, None]]


class _ScanTask(msgspec.Struct, frozen=True):
    """A content to scan."""

    digest: bytes
    """The key of the verdict."""
    hash: bytes
    """SHA-256 of the content."""
    turns: FairSemaphore[str]
    owner: str
    """The owner in the queue."""
    wrap: Wrap | None = None
    """Transforms the pieces, for example by decryption."""
    by: UserID | None = None
    """The user who sent the key of the encrypted file."""

    @property
    def is_inside(self) -> bool:
        """Whether the plaintext of an encrypted file is scanned."""
        return self.digest != self.hash


class _ScannerFailed(Exception):
    """A scanner was available but failed while it scanned the file. The text is for the
    operator."""


class MediaScanner:
    """Scans files and stores verdicts. Implements `ScanGate`."""

    log = Logger(namespace="homeserver.scanning")

    # More than ten: the last eight are options.
    def __init__(
        self,
        *,
        clock: IReactorTime,
        database: Database,
        store: MediaScanStore,
        rescans: MediaRescanStore,
        contents: MediaContents,
        scanners: Scanners,
        metrics: ScanMetrics,
        kinds: Collection[FileKind],
        max_size: int,
        passes_larger: bool,
        passes_unscanned: bool,
        max_concurrent: int,
        max_concurrent_decrypted: int,
        time_limit_ms: int,
        upload_wait_ms: int,
    ) -> None:
        """`kinds`: the files to scan, of at most `max_size` bytes; `passes_larger`: larger ones are
        served without a scan.

        `passes_unscanned`: files are served while scanners are unavailable.
        `max_concurrent_decrypted`: the number of encrypted files that are scanned concurrently,
        besides `max_concurrent` others. `time_limit_ms`: per file. `upload_wait_ms`: the time for
        which an upload waits for the verdict.
        """
        self._clock = clock
        self._database = database
        self._store = store
        self._rescans = rescans
        self._contents = contents
        self._scanners = scanners
        self._metrics = metrics
        self._kinds = frozenset(kinds)
        self._max_size = max_size
        self._passes_larger = passes_larger
        self._passes_unscanned = passes_unscanned
        self._job_at_once = max(1, max_concurrent // 2)
        self._time_limit_ms = time_limit_ms
        self._upload_wait_ms = upload_wait_ms
        self._make_slots = _make_slots(max_concurrent)
        self._decrypted_slots = _make_slots(max_concurrent_decrypted)
        self._work: SharedWork[bytes, ScanState] = SharedWork()
        self._count_at = 0.0
        self._paused_until = 0.0
        self._pause_seconds = 0.0
        """The length of the last pause; 0 while the scanners are available."""
        self._crash_suspects: LRU[bytes, None] = LRU(max_entries=MAX_CRASH_SUSPECTS)
        """Contents during whose scan a scanner became unavailable."""

    # The gate.

    def check_size(self, kind: FileKind, size: int) -> None:
        if kind in self._kinds and size > self._max_size and not self._passes_larger:
            raise TooLarge(
                f"Files are scanned here, and a scan takes at most {self._max_size} bytes"
            )

    def record_file(self, txn: WriteTransaction, kind: FileKind, hash: bytes, size: int) -> None:
        if kind in self._kinds and size <= self._max_size:
            until_ms = (
                self._paused_until_ms() if self._is_paused() else self._now_ms() + self._lease_ms()
            )
            self._store.record_file(txn, hash, until_ms)

    async def scan_stored(self, kind: FileKind, content: MediaContent, owner: str) -> None:
        if kind not in self._kinds or content.size > self._max_size:
            return
        try:
            state = await self._get_state(content, self._upload_wait_ms, owner)
        except MatrixError:
            return  # the verdict comes later; until then the file is not served
        if state is ScanState.HARMFUL:
            row = await self._store.get_scan(content.hash)
            found = "" if row is None or row.finding is None else f" ({row.finding})"
            raise MediaHarmful(f"A scanner has found this file harmful{found}: it is quarantined")

    async def check(
        self,
        kind: FileKind,
        content: MediaContent,
        timeout_ms: int,
        owner: str,
        *,
        is_protected: bool = False,
    ) -> None:
        if kind in self._kinds:
            await self.check_content(content, timeout_ms, owner, is_protected=is_protected)

    async def check_content(
        self, content: MediaContent, timeout_ms: int, owner: str, *, is_protected: bool = False
    ) -> None:
        """Do what `check` does, for every kind of file."""
        if content.size > self._max_size:
            if self._passes_larger:
                return
            raise MediaTooLargeToScan
        try:
            state = await self._get_state(content, timeout_ms, owner)
        except ScannersUnavailable:
            if not self._passes_unscanned:
                raise
            await self._scan_later(content.hash)
            return
        if state is ScanState.HARMFUL and not is_protected:
            raise MediaHarmful

    async def get_state(self, hash: bytes) -> ScanRow | None:
        """Return the scan of a content."""
        return await self._store.get_scan(hash)

    # Encrypted files.

    async def scan_decrypted(
        self,
        content: MediaContent,
        key: bytes,
        iv: bytes,
        timeout_ms: int,
        requester: str,
        by: UserID | None,
        check_rate: Callable[[], None],
    ) -> str | None:
        """Return what was found in a file after decryption (AES-CTR); None: nothing.

        `requester`: the owner in the queue. `by`: the user who sent the key, if known.

        `check_rate` is called before a scan starts: each key causes another scan, and any client
        can invent keys.

        A verdict holds while the scanners have the same version: a job does not have the key. A
        certain finding quarantines the file for all, if the key came from an authenticated user.
        Raises what `check` does, except MediaHarmful, and what `check_rate` does.
        """
        if content.size > self._max_size:
            if self._passes_larger:
                return None
            raise MediaTooLargeToScan
        digest = hashlib.sha256(b"inside\0" + content.hash + key + iv).digest()

        async def decrypted(pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
            decryptor = Cipher(AES(key), CTR(iv)).decryptor()
            async with aclosing(pieces):
                async for piece in pieces:
                    yield decryptor.update(piece)

        row = await self._store.get_scan(digest)
        try:
            if row is None or (
                row.state is ScanState.CLEAN and row.version != await self._version()
            ):
                check_rate()
                await self._wait(
                    _ScanTask(
                        digest, content.hash, self._decrypted_slots, requester, decrypted, by
                    ),
                    timeout_ms,
                )
                row = await self._store.get_scan(digest)
        except ScannersUnavailable:
            if self._passes_unscanned:
                return None
            raise
        return row.finding or "" if row is not None and row.state is ScanState.HARMFUL else None

    # Jobs.

    async def do_scan_pending(self, limit: int) -> int:
        """Scan pending files, for the first time or again: at most `limit`, and no fewer than may
        be scanned concurrently. Return the number of attempts."""
        if self._is_paused():
            return 0
        count = min(max(limit, self._job_at_once), 4 * self._job_at_once)
        now = self._now_ms()
        leased = await self._store.lease_requested(now, now + self._lease_ms() * 4, count)
        were_available = await map_concurrently(self._attempt, leased, self._job_at_once)
        if self._clock.seconds() >= self._count_at:
            self._count_at = self._clock.seconds() + COUNT_SECONDS
            waiting = await self._store.count_requested()
            self._metrics.waiting.labels("first").set(waiting[ScanRequest.FIRST])
            self._metrics.waiting.labels("another").set(waiting[ScanRequest.AGAIN])
        if not all(were_available):
            return 0
        return limit if len(leased) == count else min(len(leased), limit - 1)

    async def do_delete_decrypted_verdicts(self, limit: int) -> int:
        """Delete old verdicts about encrypted files, at most `limit`; return their number. For a
        job."""
        return await self._store.remove_inside(self._now_ms() - DECRYPTED_LIFETIME_MS, limit)

    async def _attempt(self, hash: bytes) -> bool:
        """False if scanners are unavailable."""
        if self._is_paused():  # since other files of the batch were tried
            await self._store.postpone(hash, self._paused_until_ms())
            return False
        try:
            await self._run(_ScanTask(hash, hash, self._make_slots, JOB_OWNER))
        except MatrixError:
            return not self._is_paused()
        return True

    # A single scan.

    async def _get_state(self, content: MediaContent, timeout_ms: int, owner: str) -> ScanState:
        hash = content.hash
        row = await self._store.get_scan(hash)
        if row is not None:
            if row.state is not ScanState.UNKNOWN:
                return row.state
            if row.failures and self._now_ms() < row.due_ts and not self._work.is_running(hash):
                raise ScannersUnavailable(
                    "This file cannot be scanned; the server will try again later"
                )
        return await self._wait(_ScanTask(hash, hash, self._make_slots, owner), timeout_ms)

    async def _scan_later(self, hash: bytes) -> None:
        """Leave a file that is served without a verdict to the job, also if it arrived before
        scanning was enabled."""
        if await self._store.get_scan(hash) is None:
            await self._store.postpone(hash, self._now_ms() + SCANNER_RETRY_MS)

    def _run(self, task: _ScanTask) -> Coroutine[Deferred[Any], Any, ScanState]:
        """Scan a content, or join a scan that is running."""
        return self._work.run(task.digest, lambda: self._scan(task))

    async def _wait(self, task: _ScanTask, timeout_ms: int) -> ScanState:
        """Scan a content and wait at most this time."""
        seconds = min(max(timeout_ms, 0), MAX_WAIT_MS) / 1000
        waiting = Deferred.fromCoroutine(self._run(task))
        try:
            return await waiting.addTimeout(seconds, self._clock)
        except TookTooLong:
            raise NotYetUploaded("This file is still being scanned: try again later") from None

    async def _scan(self, task: _ScanTask) -> ScanState:
        """Send a content to the scanners and store the verdict. Raises ScannersUnavailable,
        NotFound, NotYetUploaded, StoreUnavailable."""
        if self._is_paused():
            raise ScannersUnavailable
        async with task.turns.hold(task.owner):
            if self._is_paused():  # since this task waits
                await self._try_later(task)
                raise ScannersUnavailable
            version, found = await self._try(task)
        state = ScanState.CLEAN if found is None else ScanState.HARMFUL
        self._metrics.scans.labels(state.name.lower()).inc()
        text = None if found is None else str(found)[:MAX_FINDING_CHARS]
        by = None if found is None else task.by
        verdict = ScanRow(task.digest, task.hash, state, version, self._now_ms(), text, by)
        await self._database.write("set_media_verdict", self._store_verdict, verdict, found)
        return state

    async def _try(self, task: _ScanTask) -> tuple[str, ScanFinding | None]:
        """Return the version of the scanners and their finding."""
        began = self._clock.seconds()
        try:
            result = await self._scan_content(task)
        except ScannerUnavailable as error:
            raise await self._pause_for(task, error) from error
        except _ScannerFailed as error:
            # either a fault of the scanner, such as a full disk, or of this file, which must not
            # stop other scans
            if await self._scanners.are_available():
                raise await self._record_failure(task, error, SCANNER_RETRY_MS) from error
            raise await self._record_crash(task, error) from error
        except (CannotScan, TookTooLong) as error:
            raise await self._record_failure(task, error, FILE_RETRY_MS) from error
        except OSError as error:
            raise media_store_error(error) from error
        self._metrics.seconds.inc(self._clock.seconds() - began)
        if self._pause_seconds:
            self._pause_seconds = 0.0
            self.log.info("the scanners are available again")
        return result

    async def _scan_content(self, task: _ScanTask) -> tuple[str, ScanFinding | None]:
        opened = await self._contents.open(task.hash)
        if opened is None:
            self.log.error("the content {hash} to be scanned is missing", hash=task.hash.hex())
            await self._store.record_failure(
                task.hash, self._now_ms(), FILE_RETRY_MS, MAX_FILE_RETRY_MS
            )
            await self._store.remove_unused(task.hash)
            raise NotFound("The content of this file is missing")

        def pieces() -> AsyncGenerator[bytes, None]:
            read = _pieces(opened)
            return read if task.wrap is None else task.wrap(read)

        async def ask() -> tuple[str, ScanFinding | None]:
            try:
                version = await self._scanners.get_version()
            except CannotScan as error:  # too slow to report a version
                raise ScannerUnavailable(str(error)) from error
            try:
                return version, await self._scanners.scan(FileToCheck(opened.size, pieces))
            except ScannerUnavailable as error:
                raise _ScannerFailed(str(error)) from error

        try:
            asking = Deferred.fromCoroutine(ask())
            result = await asking.addTimeout(self._time_limit_ms / 1000, self._clock)
            self._metrics.bytes.inc(opened.size)
            return result
        finally:
            opened.close()

    def _is_paused(self) -> bool:
        """Whether scanning is paused because a scanner was unavailable."""
        return self._clock.seconds() < self._paused_until

    async def _pause_for(self, task: _ScanTask, error: Exception) -> MatrixError:
        """Pause: a scanner is unavailable."""
        self._metrics.scans.labels("failed").inc()
        self._pause(error)
        await self._try_later(task)
        return ScannersUnavailable()

    async def _try_later(self, task: _ScanTask) -> None:
        """Schedule the task for the job after the pause."""
        if not task.is_inside:
            await self._store.postpone(task.hash, self._paused_until_ms())

    async def _record_crash(self, task: _ScanTask, error: Exception) -> MatrixError:
        """Handle a scanner that became unavailable during a scan. It is restarting or, if that
        happened with this content before, the content crashes it."""
        if task.digest in self._crash_suspects:
            self._pause(error)
            return await self._record_failure(task, error, SCANNER_RETRY_MS)
        self._crash_suspects.put(task.digest, None)
        return await self._pause_for(task, error)

    def _pause(self, error: Exception) -> None:
        """Pause scanning."""
        if self._is_paused():
            return  # already paused by another task
        if not self._pause_seconds:
            self.log.error("files cannot be scanned: {error}", error=str(error))
        self._pause_seconds = PAUSES.after(self._pause_seconds * 1000) / 1000
        self._paused_until = self._clock.seconds() + self._pause_seconds

    def _paused_until_ms(self) -> int:
        return int(self._paused_until * 1000)

    async def _record_failure(
        self, task: _ScanTask, error: Exception, backoff_ms: int
    ) -> MatrixError:
        """Record that the scanners are available but cannot scan this content."""
        self._metrics.scans.labels("failed").inc()
        text = str(error) or "the scan takes too long"
        self.log.error(
            "the file {hash} cannot be scanned: {error}", hash=task.hash.hex(), error=text
        )
        if not task.is_inside:
            await self._store.record_failure(
                task.hash, self._now_ms(), backoff_ms, MAX_FILE_RETRY_MS
            )
        return ScannersUnavailable()

    def _store_verdict(
        self, txn: WriteTransaction, verdict: ScanRow, found: ScanFinding | None
    ) -> None:
        """Store the verdict and its consequences."""
        if found is not None and verdict.digest == verdict.hash:
            self._rescans.count_found(txn, verdict.hash)
        conclusive = (
            found is not None
            and verdict.by_user_id is not None
            and self._scanners.is_conclusive(found)
        )
        users = self._store.set_verdict(
            txn, verdict, quarantine=conclusive or verdict.digest == verdict.hash
        )
        for user_id in users:
            record_event(txn, UserID(user_id), AuditEvent.FILE_HARMFUL, verdict.scanned_ts)
        if found is not None:
            txn.after_commit(
                lambda: self.log.warn(
                    "a file is harmful: {found}; its SHA-256 is {hash}",
                    found=verdict.finding,
                    hash=verdict.hash.hex(),
                )
            )

    async def _version(self) -> str:
        """Return the version of the scanners. Raises ScannersUnavailable."""
        if self._is_paused():
            raise ScannersUnavailable
        try:
            return await self._scanners.get_version()
        except (ScannerUnavailable, CannotScan) as error:
            self.log.error("files cannot be scanned: {error}", error=str(error))
            raise ScannersUnavailable from error

    def _lease_ms(self) -> int:
        return self._time_limit_ms + SCANNER_RETRY_MS

    def _now_ms(self) -> int:
        return int(self._clock.seconds() * 1000)


def _make_slots(at_once: int) -> FairSemaphore[str]:
    """Return slots; one owner may hold all but one of them."""
    return FairSemaphore(
        permits=at_once,
        permits_per_key=max(1, at_once - 1),
        max_waiting=MAX_WAITING,
        max_waiting_per_key=MAX_WAITING_PER_OWNER,
        refusal=lambda _owner: NotYetUploaded(
            "Many files are waiting to be scanned: try again later"
        ),
    )


async def _pieces(opened: OpenedContent) -> AsyncGenerator[bytes, None]:
    at = 0
    while at < opened.size:
        piece = await opened.read(at, PIECE_BYTES)
        if not piece:
            raise OSError("the file is shorter than it was")
        yield piece
        at += len(piece)
