"""Scans files, each content once, before anybody gets them.

A file is scanned when it has come, and what could not be scanned then is scanned by a job. Who asks
for a file meanwhile waits, and has it scanned first. What is harmful is held back like what an
administrator holds back.

Laws:
- No file is given out of which nothing is known, unless the configuration says so.
- A file goes to the scanners piece by piece, as it is read from where it is kept; nothing of it is
  written anywhere.
- So many files are scanned at the same time, each within its limit of time; nothing that is in a
  file makes others wait longer. They have their turns by whose they are, and what is inside of
  encrypted files has turns of its own, by who asks: so nobody who sends or asks for much keeps the
  files of others waiting. The job has half of the turns at most.
- What cannot be scanned is tried after pauses that get longer, whoever asks for it meanwhile.
- The server keeps neither keys of encrypted files, nor anything that tells what is in them: of
  these, whether something was found is noted under a hash of content and key.
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
from federation.rooms.concurrent import map_at_once
from homeserver.api.storage_errors import store_error
from homeserver.observe.scanning import ScanMetrics
from homeserver.services.audit.audit import Happened, note
from homeserver.services.plugins.hooks import FileToCheck
from homeserver.services.scanning.scanner import CannotScan, Finding, ScannerAway
from homeserver.services.scanning.scanners import Scanners
from storage.cache import LRU
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.media.contents import Contents, OpenedContent
from storage.media.media import Content
from storage.media.rescans import FileKind, MediaRescanStore
from storage.media.scans import MediaScanStore, ScanRow, ScanState, Wanted

PIECE_BYTES: Final = 1 << 20
LONGEST_WAIT_MS: Final = 60_000
MOST_WAITING: Final = 1000
"""Scans that wait for their turn in memory; what comes beyond them is left to the job, or has to be
asked for again."""
MOST_WAITING_OF_ONE: Final = 50
COUNT_SECONDS: Final = 30.0
"""Between two counts of what waits, which looks at all of it."""
AWAY_RETRIES: Final = BackoffSchedule(5_000, 60_000)
"""How long nothing is shown to scanners of which one could not be asked."""
AWAY_RETRY_MS: Final = 60_000
"""After so long a file is shown again over which a scanner failed, or that was given out since none
could be asked."""
FILE_RETRY_MS: Final = 600_000
"""After so long a file is shown again that could not be scanned, while others could; twice as long
each time."""
LONGEST_FILE_RETRY_MS: Final = 24 * 3600 * 1000
THE_JOB: Final = "job"
"""On whose behalf the job scans: no user, and no server."""
INSIDE_MS: Final = 7 * 24 * 3600 * 1000
"""For so long it is known of what is inside of an encrypted file that it was clean."""
MOST_FOUND_CHARS: Final = 300
MOST_ENDED: Final = 1000

Wrap = Callable[[AsyncGenerator[bytes, None]], AsyncGenerator[bytes, None]]


class _Wish(msgspec.Struct, frozen=True):
    """What is to be shown to the scanners."""

    digest: bytes
    """Under which the verdict is noted."""
    hash: bytes
    """Of the content."""
    turns: FairSemaphore[str]
    whose: str
    """On whose behalf."""
    wrap: Wrap | None = None
    """Makes of its pieces what the scanners see."""
    by: UserID | None = None
    """Who has shown the key of what is inside."""

    @property
    def is_inside(self) -> bool:
        """Whether it is what is inside of an encrypted file."""
        return self.digest != self.hash


class _FailedOverIt(Exception):
    """A scanner answered, and failed once it was at the file. The text is for the operator."""


class Scanning:
    """Scans, and tells what came of it. Implements `ScanGate`."""

    log = Logger(namespace="homeserver.scanning")

    def __init__(
        self,
        clock: IReactorTime,
        database: Database,
        store: MediaScanStore,
        rescans: MediaRescanStore,
        contents: Contents,
        scanners: Scanners,
        metrics: ScanMetrics,
        *,
        kinds: Collection[FileKind],
        max_size: int,
        passes_larger: bool,
        passes_unscanned: bool,
        at_once: int,
        inside_at_once: int,
        time_limit_ms: int,
        upload_wait_ms: int,
    ) -> None:
        """`kinds`: which files, of at most `max_size` bytes; `passes_larger`: larger ones are given
        out unscanned.

        `passes_unscanned`: files are given out while scanners cannot be asked. `inside_at_once`:
        how many encrypted files are looked into at the same time, beside `at_once` others.
        `time_limit_ms`: for one file. `upload_wait_ms`: how long somebody who uploads waits to hear
        what came of it.
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
        self._job_at_once = max(1, at_once // 2)
        self._time_limit_ms = time_limit_ms
        self._upload_wait_ms = upload_wait_ms
        self._turns = _turns(at_once)
        self._inside_turns = _turns(inside_at_once)
        self._work: SharedWork[bytes, ScanState] = SharedWork()
        self._count_at = 0.0
        self._away_until = 0.0
        self._away_seconds = 0.0
        """How long the last pause was, for which scanners are left alone; 0 while they can be
        asked."""
        self._ended_over: LRU[bytes, None] = LRU(max_entries=MOST_ENDED)
        """Contents at which a scanner was when it ended."""

    # The gate.

    def check_size(self, kind: FileKind, size: int) -> None:
        if kind in self._kinds and size > self._max_size and not self._passes_larger:
            raise TooLarge(
                f"Files are scanned here, and none of more than {self._max_size} bytes can be"
            )

    def note(self, txn: WriteTransaction, kind: FileKind, hash: bytes, size: int) -> None:
        if kind in self._kinds and size <= self._max_size:
            until_ms = (
                self._away_until_ms() if self._is_away() else self._now_ms() + self._lease_ms()
            )
            self._store.note(txn, hash, until_ms)

    async def check_kept(self, kind: FileKind, content: Content, whose: str) -> None:
        if kind not in self._kinds or content.size > self._max_size:
            return
        try:
            state = await self._known(content, self._upload_wait_ms, whose)
        except MatrixError:
            return  # what is not known in time becomes known later; until then nobody gets it
        if state is ScanState.HARMFUL:
            row = await self._store.get_scan(content.hash)
            found = "" if row is None or row.found is None else f" ({row.found})"
            raise MediaHarmful(f"A scanner has found this file harmful{found}: it is held back")

    async def check(
        self,
        kind: FileKind,
        content: Content,
        timeout_ms: int,
        whose: str,
        *,
        is_protected: bool = False,
    ) -> None:
        if kind in self._kinds:
            await self.require(content, timeout_ms, whose, is_protected=is_protected)

    async def require(
        self, content: Content, timeout_ms: int, whose: str, *, is_protected: bool = False
    ) -> None:
        """As `check`, of whatever kind it is."""
        if content.size > self._max_size:
            if self._passes_larger:
                return
            raise MediaTooLargeToScan
        try:
            state = await self._known(content, timeout_ms, whose)
        except ScannersUnavailable:
            if not self._passes_unscanned:
                raise
            await self._want_later(content.hash)
            return
        if state is ScanState.HARMFUL and not is_protected:
            raise MediaHarmful

    async def get_state(self, hash: bytes) -> ScanRow | None:
        """What is known of a content."""
        return await self._store.get_scan(hash)

    # What is inside of encrypted files.

    async def require_inside(
        self,
        content: Content,
        key: bytes,
        iv: bytes,
        timeout_ms: int,
        asker: str,
        by: UserID | None,
        check_rate: Callable[[], None],
    ) -> str | None:
        """What was found in a file once it is decrypted (AES-CTR); None: nothing. `asker`: who has
        the turn. `by`: who shows the key, where it is known.

        `check_rate` is called before there is work: each key makes new work, and whoever is let in
        can make up keys.

        A verdict is good for as long as the scanners know what they knew: a job cannot ask for the
        key. What a scanner finds that is certain has the file held back for all, if somebody who is
        signed in has shown the key. Raises what `check` does, but for MediaHarmful, and what
        `check_rate` does.
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
                    _Wish(digest, content.hash, self._inside_turns, asker, decrypted, by),
                    timeout_ms,
                )
                row = await self._store.get_scan(digest)
        except ScannersUnavailable:
            if self._passes_unscanned:
                return None
            raise
        return row.found or "" if row is not None and row.state is ScanState.HARMFUL else None

    # What a job does.

    async def do_scan_wanted(self, limit: int) -> int:
        """Scan files that nobody has scanned yet, or that are to be scanned again: at most so many,
        but as many as it may have scanned at the same time; how many were taken."""
        if self._is_away():
            return 0
        count = min(max(limit, self._job_at_once), 4 * self._job_at_once)
        now = self._now_ms()
        taken = await self._store.take_wanted(now, now + self._lease_ms() * 4, count)
        could_be_asked = await map_at_once(self._attempt, taken, self._job_at_once)
        if self._clock.seconds() >= self._count_at:
            self._count_at = self._clock.seconds() + COUNT_SECONDS
            waiting = await self._store.count_wanted()
            self._metrics.waiting.labels("first").set(waiting[Wanted.FIRST])
            self._metrics.waiting.labels("another").set(waiting[Wanted.AGAIN])
        if not all(could_be_asked):
            return 0
        return limit if len(taken) == count else min(len(taken), limit - 1)

    async def do_forget_inside(self, limit: int) -> int:
        """Forget old verdicts about what is inside of encrypted files, at most so many; how many. A
        job does it."""
        return await self._store.forget_inside(self._now_ms() - INSIDE_MS, limit)

    async def _attempt(self, hash: bytes) -> bool:
        """False where scanners cannot be asked."""
        if self._is_away():  # since others of these were tried
            await self._store.put_off(hash, self._away_until_ms())
            return False
        try:
            await self._run(_Wish(hash, hash, self._turns, THE_JOB))
        except MatrixError:
            return not self._is_away()
        return True

    # One scan.

    async def _known(self, content: Content, timeout_ms: int, whose: str) -> ScanState:
        hash = content.hash
        row = await self._store.get_scan(hash)
        if row is not None:
            if row.state is not ScanState.UNKNOWN:
                return row.state
            if row.failures and self._now_ms() < row.until_ts and not self._work.is_under_way(hash):
                raise ScannersUnavailable("This file cannot be scanned: it is tried again later")
        return await self._wait(_Wish(hash, hash, self._turns, whose), timeout_ms)

    async def _want_later(self, hash: bytes) -> None:
        """A file is given out of which nothing is known: the job scans it, also where it came
        before files were scanned."""
        if await self._store.get_scan(hash) is None:
            await self._store.put_off(hash, self._now_ms() + AWAY_RETRY_MS)

    def _run(self, wish: _Wish) -> Coroutine[Deferred[Any], Any, ScanState]:
        """Have it scanned, by whoever does it."""
        return self._work.run(wish.digest, lambda: self._scan(wish))

    async def _wait(self, wish: _Wish, timeout_ms: int) -> ScanState:
        """Have it scanned, and wait so long."""
        seconds = min(max(timeout_ms, 0), LONGEST_WAIT_MS) / 1000
        waiting = Deferred.fromCoroutine(self._run(wish))
        try:
            return await waiting.addTimeout(seconds, self._clock)
        except TookTooLong:
            raise NotYetUploaded("This file is still being scanned: try again in a while") from None

    async def _scan(self, wish: _Wish) -> ScanState:
        """Show a content to the scanners, and note what they say. Raises ScannersUnavailable,
        NotFound, NotYetUploaded, StoreUnavailable."""
        if self._is_away():
            raise ScannersUnavailable
        async with wish.turns.hold(wish.whose):
            if self._is_away():  # since it waits
                await self._try_later(wish)
                raise ScannersUnavailable
            version, found = await self._try(wish)
        state = ScanState.CLEAN if found is None else ScanState.HARMFUL
        self._metrics.scans.labels(state.name.lower()).inc()
        text = None if found is None else str(found)[:MOST_FOUND_CHARS]
        by = None if found is None else wish.by
        verdict = ScanRow(wish.digest, wish.hash, state, version, self._now_ms(), text, by)
        await self._database.write("set_media_verdict", self._conclude, verdict, found)
        return state

    async def _try(self, wish: _Wish) -> tuple[str, Finding | None]:
        """What the scanners know, and what they say."""
        began = self._clock.seconds()
        try:
            said = await self._ask(wish)
        except ScannerAway as error:
            raise await self._put_off(wish, error) from error
        except _FailedOverIt as error:
            # For a reason of its own, such as a full disk, or for what is in this file, which shall
            # not stop the scans of others
            if await self._scanners.can_be_asked():
                raise await self._note_failure(wish, error, AWAY_RETRY_MS) from error
            raise await self._note_end(wish, error) from error
        except (CannotScan, TookTooLong) as error:
            raise await self._note_failure(wish, error, FILE_RETRY_MS) from error
        except OSError as error:
            raise store_error(error) from error
        self._metrics.seconds.inc(self._clock.seconds() - began)
        if self._away_seconds:
            self._away_seconds = 0.0
            self.log.info("the scanners can be asked again")
        return said

    async def _ask(self, wish: _Wish) -> tuple[str, Finding | None]:
        opened = await self._contents.open(wish.hash)
        if opened is None:
            self.log.error(
                "the content {hash}, which was to be scanned, is missing", hash=wish.hash.hex()
            )
            await self._store.note_failure(
                wish.hash, self._now_ms(), FILE_RETRY_MS, LONGEST_FILE_RETRY_MS
            )
            await self._store.forget_unused(wish.hash)
            raise NotFound("The content of this file is missing")

        def pieces() -> AsyncGenerator[bytes, None]:
            read = _pieces(opened)
            return read if wish.wrap is None else wish.wrap(read)

        async def ask() -> tuple[str, Finding | None]:
            try:
                version = await self._scanners.get_version()
            except CannotScan as error:  # it is too slow to say even that
                raise ScannerAway(str(error)) from error
            try:
                return version, await self._scanners.scan(FileToCheck(opened.size, pieces))
            except ScannerAway as error:
                raise _FailedOverIt(str(error)) from error

        try:
            asking = Deferred.fromCoroutine(ask())
            result = await asking.addTimeout(self._time_limit_ms / 1000, self._clock)
            self._metrics.bytes.inc(opened.size)
            return result
        finally:
            opened.close()

    def _is_away(self) -> bool:
        """Whether the scanners are left alone, since one could not be asked."""
        return self._clock.seconds() < self._away_until

    async def _put_off(self, wish: _Wish, error: Exception) -> MatrixError:
        """A scanner cannot be asked."""
        self._metrics.scans.labels("failed").inc()
        self._leave_alone(error)
        await self._try_later(wish)
        return ScannersUnavailable()

    async def _try_later(self, wish: _Wish) -> None:
        """A job tries when they are asked again."""
        if not wish.is_inside:
            await self._store.put_off(wish.hash, self._away_until_ms())

    async def _note_end(self, wish: _Wish, error: Exception) -> MatrixError:
        """A scanner was at it, and answers nothing any more: it is being restarted, or, if that was
        so before, this file ends it."""
        if wish.digest in self._ended_over:
            self._leave_alone(error)
            return await self._note_failure(wish, error, AWAY_RETRY_MS)
        self._ended_over.put(wish.digest, None)
        return await self._put_off(wish, error)

    def _leave_alone(self, error: Exception) -> None:
        """Ask the scanners nothing for a while."""
        if self._is_away():
            return  # others have found so meanwhile
        if not self._away_seconds:
            self.log.error("files cannot be scanned: {error}", error=str(error))
        self._away_seconds = AWAY_RETRIES.after(self._away_seconds * 1000) / 1000
        self._away_until = self._clock.seconds() + self._away_seconds

    def _away_until_ms(self) -> int:
        return int(self._away_until * 1000)

    async def _note_failure(self, wish: _Wish, error: Exception, pause_ms: int) -> MatrixError:
        """They can be asked, and cannot scan this."""
        self._metrics.scans.labels("failed").inc()
        text = str(error) or "it takes too long"
        self.log.error(
            "the file {hash} cannot be scanned: {error}", hash=wish.hash.hex(), error=text
        )
        if not wish.is_inside:
            await self._store.note_failure(
                wish.hash, self._now_ms(), pause_ms, LONGEST_FILE_RETRY_MS
            )
        return ScannersUnavailable()

    def _conclude(self, txn: WriteTransaction, verdict: ScanRow, found: Finding | None) -> None:
        """Note what they say, and what follows from it."""
        if found is not None and verdict.digest == verdict.hash:
            self._rescans.count_found(txn, verdict.hash)
        certain = (
            found is not None
            and verdict.by_user_id is not None
            and self._scanners.is_certain(found)
        )
        users = self._store.set_verdict(
            txn, verdict, hold=certain or verdict.digest == verdict.hash
        )
        for user_id in users:
            note(txn, UserID(user_id), Happened.FILE_HARMFUL, verdict.scanned_ts)
        if found is not None:
            txn.after_commit(
                lambda: self.log.warn(
                    "a file is harmful: {found}; its SHA-256 is {hash}",
                    found=verdict.found,
                    hash=verdict.hash.hex(),
                )
            )

    async def _version(self) -> str:
        """What the scanners know. Raises ScannersUnavailable."""
        if self._is_away():
            raise ScannersUnavailable
        try:
            return await self._scanners.get_version()
        except (ScannerAway, CannotScan) as error:
            self.log.error("files cannot be scanned: {error}", error=str(error))
            raise ScannersUnavailable from error

    def _lease_ms(self) -> int:
        return self._time_limit_ms + AWAY_RETRY_MS

    def _now_ms(self) -> int:
        return int(self._clock.seconds() * 1000)


def _turns(at_once: int) -> FairSemaphore[str]:
    """One may hold all but one."""
    return FairSemaphore(
        at_once,
        max(1, at_once - 1),
        max_waiting=MOST_WAITING,
        max_waiting_per_key=MOST_WAITING_OF_ONE,
        refusal=lambda _owner: NotYetUploaded(
            "Many files wait to be scanned: try again in a while"
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
