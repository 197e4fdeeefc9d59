"""Downloads of other servers' files: each is fetched once for all concurrent requests, with a
bounded number of downloads (`download_slots.py`).

Laws:
- A file of more than `SPOOL_BYTES` is written to disk as it arrives. Memory and time are bounded: a
  download that is too large, too slow or does not end is cancelled.
- A request fails if the first bytes do not arrive within its timeout. Once they have arrived, the
  request waits until the download ends.
- Failures are cached for a while, so that a room full of pictures from an unreachable server causes
  one request.
"""

from collections.abc import Awaitable, Callable
from typing import Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from federation.peers.client import RefusedByRemote
from federation.peers.shared_work import SharedWork
from federation.protocol.errors import (
    Forbidden,
    MatrixError,
    MediaTooLarge,
    NotFound,
    NotYetUploaded,
    OtherServerFailed,
    RemoteError,
)
from federation.protocol.ids import ServerName
from federation.remote.media import FileHeaders, MediaClient, RemoteFileTooLarge
from homeserver.api.media_store_errors import convert_store_errors
from homeserver.services.media.download_slots import DownloadSlot, DownloadSlots
from storage.cache import LRU
from storage.media.spool import Spool

SPOOL_BYTES: Final = 1 << 18
"""A file up to this size stays in memory."""
CHECK_SECONDS: Final = 30.0
MIN_BYTES_PER_CHECK: Final = 64 << 10
"""Received per check, or the download is cancelled."""
BYTES_PER_SECOND: Final = 100 << 10
"""The speed at which a file of the largest size still arrives in time."""
FILE_FAILED_SECONDS: Final = 60.0
SERVER_FAILED_SECONDS: Final = 20.0
"""The time until it is tried again."""
MAX_FAILURES: Final = 10_000

RemoteFileKey = tuple[ServerName, str]
StoreFile = Callable[[FileHeaders, Spool], Awaitable[None]]
"""Stores a received file; when it returns the file is on disk."""


class _ArrivingFile:
    """Receives one file."""

    def __init__(self, *, file: Spool, on_begin: Callable[[], None]) -> None:
        self.received = 0
        self.has_begun = False
        self.file = file
        self._on_begin = on_begin

    def start(self) -> None:
        self.has_begun = True
        self.file.seek(0)
        self.file.truncate()
        self._on_begin()

    def write(self, data: bytes) -> None:
        self.received += len(data)
        self.file.write(data)


class RemoteDownloads:
    """Downloads files of at most `max_bytes`."""

    def __init__(
        self,
        *,
        remote: MediaClient,
        clock: IReactorTime,
        spool: Callable[[int], Spool],
        max_bytes: int,
    ) -> None:
        self._remote = remote
        self._clock = clock
        self._spool = spool
        self._max_bytes = max_bytes
        self._slots = DownloadSlots(clock)
        self._work: SharedWork[RemoteFileKey, None] = SharedWork()
        self._arriving: set[RemoteFileKey] = set()
        self._failed: LRU[tuple[ServerName, str | None], tuple[float, type[MatrixError], str]] = (
            LRU(max_entries=MAX_FAILURES)
        )

    async def fetch(
        self, server: ServerName, media_id: str, timeout_ms: int, store: StoreFile, user: str
    ) -> None:
        """Download a file and pass it to `store`, or wait for a download that is running. `user`:
        the requester.

        Raises NotFound, NotYetUploaded, MediaTooLarge, OtherServerFailed, LimitExceeded, Forbidden.
        """
        key = (server, media_id)
        self._refuse_failed(key)
        waiting = Deferred.fromCoroutine(
            self._work.run(key, lambda: self._fetch(key, timeout_ms, store, user))
        )
        is_late = False

        def give_up() -> None:
            nonlocal is_late
            if key not in self._arriving:
                is_late = True
                waiting.cancel()

        timer = self._clock.callLater(timeout_ms / 1000, give_up)
        try:
            await waiting
        except CancelledError:
            if is_late:
                raise NotYetUploaded(
                    "The other server has not begun to send the file in time"
                ) from None
            raise
        finally:
            if timer.active():
                timer.cancel()

    async def _fetch(
        self, key: RemoteFileKey, timeout_ms: int, store: StoreFile, user: str
    ) -> None:
        server = key[0]
        try:
            slot = await self._slots.acquire(server, user)
            try:
                self._refuse_failed(key)
                await self._receive(key, timeout_ms, store, slot)
            finally:
                slot.release()
        finally:
            self._arriving.discard(key)

    async def _receive(
        self, key: RemoteFileKey, timeout_ms: int, store: StoreFile, slot: DownloadSlot
    ) -> None:
        server, media_id = key
        arriving = _ArrivingFile(
            file=self._spool(SPOOL_BYTES), on_begin=lambda: self._arriving.add(key)
        )
        seconds = timeout_ms / 1000 + CHECK_SECONDS + self._max_bytes / BYTES_PER_SECOND
        task = Deferred.fromCoroutine(
            self._remote.download(
                server,
                media_id,
                arriving,
                timeout_ms=timeout_ms,
                seconds=seconds,
                max_bytes=self._max_bytes,
            )
        )
        slot.connect(lambda: arriving.received, task.cancel)
        progress_check = _ProgressCheck(
            clock=self._clock, file=arriving, task=task, first_seconds=timeout_ms / 1000
        )
        try:
            try:
                with convert_store_errors():
                    headers = await task
            except CancelledError as error:
                # the slot was needed: nothing is known about the file, so it may be retried at once
                if slot.is_cancelled:
                    raise NotYetUploaded(
                        "The other server has not sent the file yet, and other requests wait"
                    ) from error
                raise self._cache_failure(
                    key, OtherServerFailed(f"{server} sends the file too slowly")
                ) from error
            except RefusedByRemote as error:
                raise self._client_error(key, error) from error
            except RemoteFileTooLarge as error:
                raise self._cache_failure(key, MediaTooLarge()) from error
            except RemoteError as error:
                failed = OtherServerFailed(
                    f"{server} could not be reached, or sent an invalid response"
                )
                raise self._cache_failure(
                    (server, None) if error.retryable else key, failed
                ) from error
            finally:
                progress_check.stop()
            arriving.file.seek(0)
            await store(headers, arriving.file)
        finally:
            arriving.file.close()

    def _client_error(self, key: RemoteFileKey, error: RefusedByRemote) -> MatrixError:
        """Return the error for a client when the other server refuses."""
        if error.errcode == "M_NOT_YET_UPLOADED":
            return NotYetUploaded()
        if error.errcode == "M_TOO_LARGE":
            return self._cache_failure(key, MediaTooLarge("The file is too large for its server"))
        if error.status == 404:
            return self._cache_failure(key, NotFound("Its server has no such file"))
        if error.status in (401, 403):
            return self._cache_failure(
                key, Forbidden("Its server does not allow this server to fetch it")
            )
        return self._cache_failure(key, OtherServerFailed(f"{key[0]} does not send the file now"))

    def _refuse_failed(self, key: RemoteFileKey) -> None:
        """Raise the cached error of a recent failure."""
        for each in (key, (key[0], None)):
            failed = self._failed.peek(each)
            if failed is None:
                continue
            until, kind, text = failed
            if self._clock.seconds() < until:
                raise kind(text)
            self._failed.pop(each)

    def _cache_failure(self, key: tuple[ServerName, str | None], error: MatrixError) -> MatrixError:
        seconds = SERVER_FAILED_SECONDS if key[1] is None else FILE_FAILED_SECONDS
        self._failed.put(key, (self._clock.seconds() + seconds, type(error), error.text))
        return error


class _ProgressCheck:
    """Cancels a download that does not start, or that trickles."""

    def __init__(
        self,
        *,
        clock: IReactorTime,
        file: _ArrivingFile,
        task: Deferred[FileHeaders],
        first_seconds: float,
    ) -> None:
        self._clock = clock
        self._file = file
        self._task = task
        self._timer: IDelayedCall | None = clock.callLater(
            first_seconds + CHECK_SECONDS, self._check_started
        )

    def stop(self) -> None:
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        self._timer = None

    def _check_started(self) -> None:
        if self._file.has_begun:
            self._schedule(self._file.received)
        else:
            self._task.cancel()

    def _check(self, before: int) -> None:
        if self._file.received - before >= MIN_BYTES_PER_CHECK:
            self._schedule(self._file.received)
        else:
            self._task.cancel()

    def _schedule(self, before: int) -> None:
        self._timer = self._clock.callLater(CHECK_SECONDS, self._check, before)
