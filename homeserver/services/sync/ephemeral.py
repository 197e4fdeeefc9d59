"""The `ephemeral` section of a joined room: read receipts and typing notifications.

spec: client-server-api#receipts, client-server-api#typing-notifications
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Final

from federation.protocol.ids import UserID
from homeserver.services.ephemeral.typing import Typing
from homeserver.services.push.unread_counts import OwnReceipts, UnreadCounts
from homeserver.services.rooms.receipt_cache import ReceiptCache
from homeserver.services.streams.recent_changes import RecentChanges
from homeserver.services.sync.request import SyncRange, SyncRequest
from homeserver.services.sync.room_update import RoomUpdate
from storage.engine.streams import Streams
from storage.rooms.receipts import ReceiptRow

ANY_POSITION: Final = 2**62
"""Greater than all positions."""


class EphemeralSection:
    """Fills in the ephemeral events of joined rooms."""

    def __init__(
        self,
        *,
        streams: Streams,
        recent: RecentChanges,
        receipts: ReceiptCache,
        unread: UnreadCounts,
        typing: Typing,
    ) -> None:
        self._streams = streams
        self._recent = recent
        self._receipts = receipts
        self._unread = unread
        self._typing = typing

    async def fill_receipts(
        self,
        request: SyncRequest,
        span: SyncRange,
        updates: Sequence[RoomUpdate],
        ignored: Set[str],
    ) -> OwnReceipts | None:
        """Add the new receipts to each room.

        Return the user's own receipts of rooms whose receipts were all read, if they are current:
        the unread counts need them, and do not read them again.
        """
        filter_ = request.filter.room.ephemeral
        by_nid = self._find_rooms(request, span, updates)
        if not by_nid or not filter_.allows("m.receipt", None):
            return None
        user_id = request.caller.user_id
        is_current, changes = span.upto == self._streams.current(), self._unread.changes
        # a receipt that has just moved, also on another node, is found at its new position or not
        # at all
        full_range = (0, ANY_POSITION if is_current else span.upto)
        ranges = {
            nid: full_range if update.starts_over else (update.since, span.upto)
            for nid, update in by_nid.items()
        }
        receipts = await self._receipts.get_receipts(ranges)
        for nid, rows in receipts.items():
            visible = visible_receipts(
                [row for row in rows if row.position <= span.upto], user_id, ignored
            )
            if visible and filter_.allows_room(by_nid[nid].room.room_id):
                by_nid[nid].ephemeral += receipt_events(visible)
        if not is_current:
            return None
        full_rooms = [nid for nid, (after, _) in ranges.items() if after == 0]
        return OwnReceipts({nid: _of_user(receipts[nid], user_id) for nid in full_rooms}, changes)

    def fill_typing(
        self,
        request: SyncRequest,
        updates: Sequence[RoomUpdate],
        shown_typing: tuple[int, ...],
        ignored: Set[str],
    ) -> tuple[int, ...]:
        """Add a typing notification to each room where it changed.

        Takes and returns the rooms in which the client shows somebody typing
        (`SyncToken.typing_rooms`).
        """
        since, filter_ = request.since, request.filter.room.ephemeral
        is_unchanged = self._typing.is_unchanged_since(None if since is None else since.ephemeral)
        if (is_unchanged and (since is None or not since.typing_rooms)) or not filter_.allows(
            "m.typing", None
        ):
            return shown_typing
        changed = self._find_typing(request, updates)
        sent: dict[int, Sequence[UserID]] = {}
        for update in updates:
            nid = update.room.room_nid
            if nid in changed and filter_.allows_room(update.room.room_id):
                sent[nid] = changed[nid]
                update.ephemeral.append(typing_event(changed[nid], ignored))
        return self._typing.update_token(shown_typing, sent)

    def _find_rooms(
        self, request: SyncRequest, span: SyncRange, updates: Sequence[RoomUpdate]
    ) -> dict[int, RoomUpdate]:
        """Return the rooms that may have new receipts."""
        changed = None
        if request.since is not None:
            changed = self._recent.rooms_since(request.caller.user_id, span.since)
        return {
            update.room.room_nid: update
            for update in updates
            if changed is None or update.starts_over or update.room.room_nid in changed.receipts
        }

    def _find_typing(
        self, request: SyncRequest, updates: Sequence[RoomUpdate]
    ) -> Mapping[int, Sequence[UserID]]:
        """Return the typing users of the rooms where the client needs them.

        For a room that is new to the client, that is when somebody types. For a room that it may
        know, also when nobody types any more, even if this node never knew of the typing: the
        client's token says that it shows somebody.
        """
        typing, since = self._typing, request.since
        new = [update.room.room_nid for update in updates if since is None or update.starts_over]
        found = typing.get_changed(new, None)
        if since is None:
            return found
        known = [
            update.room.room_nid
            for update in updates
            if update.has_rejoined or not update.starts_over
        ]
        ended = dict.fromkeys(typing.find_stopped(since.typing_rooms) & set(known), ())
        return {**ended, **typing.get_changed(known, since.ephemeral), **found}


def _of_user(receipts: Iterable[ReceiptRow], user_id: UserID) -> list[ReceiptRow]:
    return [row for row in receipts if row.user_id == user_id]


def typing_event(typing: Iterable[UserID], ignored: Set[str]) -> dict[str, Any]:
    """Make an m.typing event without ignored users. spec: client-server-api#mtyping"""
    user_ids = [user_id for user_id in typing if user_id not in ignored]
    return {"type": "m.typing", "content": {"user_ids": user_ids}}


def visible_receipts(
    receipts: Iterable[ReceiptRow], user_id: UserID, ignored: Set[str]
) -> list[ReceiptRow]:
    """Return the user's own receipts, and public ones of users whom they do not ignore."""
    return [
        row
        for row in receipts
        if row.user_id == user_id
        or (row.receipt_type != "m.read.private" and row.user_id not in ignored)
    ]


def receipt_events(receipts: Iterable[ReceiptRow]) -> list[dict[str, Any]]:
    """Make m.receipt events: one, or more if a user has receipts of several threads on one event.

    spec: client-server-api#mreceipt
    """
    contents: list[dict[str, Any]] = []
    for row in receipts:
        data: dict[str, Any] = {"ts": row.ts}
        if row.thread_id:
            data["thread_id"] = row.thread_id
        for content in contents:
            users = content.setdefault(row.event_id, {}).setdefault(row.receipt_type, {})
            if row.user_id not in users:
                users[row.user_id] = data
                break
        else:
            contents.append({row.event_id: {row.receipt_type: {row.user_id: data}}})
    return [{"type": "m.receipt", "content": content} for content in contents]
