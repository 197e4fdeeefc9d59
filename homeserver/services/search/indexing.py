"""Indexes messages, room names and topics for full-text search. A job processes events in small
batches, in the order of their numbers (`event_nid`), and sleeps while there are no new events.

Laws:
- Indexing does not delay a send: events are indexed after they are stored.
- One write stores both the index entries of a batch and the progress of the job: a crash loses
  nothing and repeats nothing. If several nodes process the same batch, the first write counts.
- The same steps index an existing database, and index everything again when the configured
  languages change.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from homeserver.observe.metrics import SearchMetrics
from homeserver.services.text.search_terms import format_words
from homeserver.services.text.text_folding import TextFolding
from storage.cluster.job_progress import select_job_progress, set_job_progress
from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction
from storage.search.search import (
    EventText,
    SearchBatch,
    SearchStore,
    TextRow,
    remove_queued_outliers,
    select_batch,
    select_latest_nid,
    select_texts,
)

JOB_NAME: Final = "index_messages"
"""The name of the job and of its stored progress."""
BATCH: Final = 200
"""Events whose texts are written together: this takes some milliseconds of the writer."""
POLL_MS: Final = 60_000
"""The time that the job waits for an announced change before it polls: backfilled events are not
announced."""

BODY, ROOM_NAME, TOPIC = range(3)
KINDS_BY_TYPE: Final[Mapping[str, int]] = {
    "m.room.message": BODY,
    "m.room.name": ROOM_NAME,
    "m.room.topic": TOPIC,
}
"""The searchable event types. spec: client-server-api#room_events"""
KINDS_BY_KEY: Final[Mapping[str, int]] = {
    "content.body": BODY,
    "content.name": ROOM_NAME,
    "content.topic": TOPIC,
}


class _Progress(msgspec.Struct, frozen=True):
    """The progress of the index."""

    folding: str
    """The name of the folding of the texts."""
    upto: int
    """The number of the last processed event."""


class MessageIndexer:
    """Runs the steps of the job."""

    def __init__(
        self,
        *,
        database: Database,
        store: SearchStore,
        folding: TextFolding,
        metrics: SearchMetrics,
        now_ms: Callable[[], int],
        enabled: bool,
    ) -> None:
        """If search is not `enabled`, the steps delete an existing index."""
        self._database = database
        self._store = store
        self._folding = folding
        self._metrics = metrics
        self._now_ms = now_ms
        self._enabled = enabled
        self._seen = -1
        """The position of the stream up to which everything is indexed."""
        self._polled_ms = 0

    async def do_step(self, limit: int) -> int:
        """Process up to `limit` events and return their number. Makes no query while nothing is
        written."""
        position, now = self._database.streams.current(), self._now_ms()
        if not self._enabled:
            if self._seen < 0:
                await self._database.write("clear_search_index", self._clear)
            self._seen = position
            return 0
        if position == self._seen and now < self._polled_ms + POLL_MS:
            return 0
        self._polled_ms = now
        done = 0
        while done < limit:
            count = await self._index_some(min(BATCH, limit - done))
            if count == 0:
                self._seen = position
                break
            done += count
        return done

    async def _index_some(self, limit: int) -> int:
        stored_progress, batch, rows, latest = await self._database.read(
            "get_events_to_index", self._read, limit
        )
        if stored_progress is None or _parse(stored_progress).folding != self._folding.name:
            await self._database.write("begin_search_index", self._begin, stored_progress)
            return 1
        if batch.count:
            await self._database.write(
                "add_to_search_index", self._write, stored_progress, batch, rows
            )
        self._metrics.behind.set(max(0, latest - batch.upto))
        return batch.count

    def _read(
        self, txn: Transaction, limit: int
    ) -> tuple[str | None, SearchBatch, list[TextRow], int]:
        stored_progress = select_job_progress(txn, JOB_NAME)
        after = _parse(stored_progress).upto if stored_progress is not None else 0
        batch = select_batch(txn, after, limit, KINDS_BY_TYPE)
        rows = [
            row
            for text in select_texts(txn, batch.touched, KINDS_BY_TYPE)
            if (row := self._make_row(text)) is not None
        ]
        return stored_progress, batch, rows, select_latest_nid(txn)

    def _make_row(self, text: EventText) -> TextRow | None:
        indexed = text.event
        found = text_of(indexed.type, indexed.state_key, _decode(text.source.pdu).content)
        words = format_words(self._folding.lines(found)) if found else ""
        if not words:
            return None
        return TextRow(
            indexed.event_nid,
            text.source.event_nid,
            indexed.room_nid,
            indexed.position,
            indexed.origin_server_ts,
            KINDS_BY_TYPE[indexed.type],
            indexed.sender,
            words,
        )

    def _begin(self, txn: WriteTransaction, stored_progress: str | None) -> None:
        """Start the index from the first event."""
        if select_job_progress(txn, JOB_NAME) == stored_progress:
            self._store.clear(txn)
            set_job_progress(txn, JOB_NAME, _format(_Progress(self._folding.name, 0)))

    def _write(
        self, txn: WriteTransaction, stored_progress: str, batch: SearchBatch, rows: list[TextRow]
    ) -> None:
        if select_job_progress(txn, JOB_NAME) != stored_progress:
            return  # another node has indexed this batch
        self._store.set_texts(txn, batch.touched, rows)
        remove_queued_outliers(txn, batch.former_outliers)
        set_job_progress(txn, JOB_NAME, _format(_Progress(self._folding.name, batch.upto)))

    def _clear(self, txn: WriteTransaction) -> None:
        off = _format(_Progress("", 0))
        if select_job_progress(txn, JOB_NAME) not in (None, off):
            self._store.clear(txn)
            set_job_progress(txn, JOB_NAME, off)


class _Event(msgspec.Struct, frozen=True):
    """The part of a stored event that is decoded here."""

    content: dict[str, Any] = {}


_decode = msgspec.json.Decoder(_Event).decode


def text_of(type: str, state_key: str | None, content: Mapping[str, Any]) -> str:
    """Return the searchable text of an event, or "" if it has none. For an edit, the new text."""
    kind = KINDS_BY_TYPE.get(type)
    if kind is None or state_key != (None if kind == BODY else ""):
        return ""
    if kind == BODY:
        edited = content.get("m.new_content")
        return _string(edited if isinstance(edited, dict) else content, "body")
    if kind == ROOM_NAME:
        return _string(content, "name")
    topic, plain = _string(content, "topic"), _plain_topic(content.get("m.topic"))
    return topic if plain in topic else f"{topic}\n{plain}"


def _string(content: Mapping[str, Any], name: str) -> str:
    value = content.get(name)
    return value if isinstance(value, str) else ""


def _plain_topic(content: object) -> str:
    """Return the plain text of an `m.topic`. spec:
    client-server-api#mroomtopic_textcontentblock"""
    if not isinstance(content, dict) or not isinstance(content.get("m.text"), list):
        return ""
    for part in content["m.text"]:
        if (
            isinstance(part, dict)
            and isinstance(part.get("body"), str)
            and part.get("mimetype", "text/plain") == "text/plain"
        ):
            return str(part["body"])
    return ""


def _parse(stored: str) -> _Progress:
    return msgspec.json.decode(stored, type=_Progress)


def _format(progress: _Progress) -> str:
    return msgspec.json.encode(progress).decode()
