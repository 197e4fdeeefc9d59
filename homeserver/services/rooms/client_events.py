"""The client format of events: the encoded event, with an `unsigned` that is made for the reader.

The event without `unsigned` is encoded when it is first needed, and cached. `unsigned` contains
what depends on the reader and the time: age, membership, the reader's transaction ID, the state
event that was replaced, the redaction. The data for it is read once for a whole page.

spec: client-server-api#room-event-format
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from itertools import compress, filterfalse, repeat
from operator import attrgetter, itemgetter
from typing import Any, Final

import msgspec

from federation.protocol.events import Event
from federation.protocol.ids import DeviceID, UserID
from federation.protocol.stripped_state import StrippedEvent
from federation.rooms.events import NO_TRANSACTION, RoomEvents, StoredEvent
from federation.rooms.sticky_events import StickyEvents
from federation.rooms.visibility import VisibleEvent
from homeserver.services.rooms.aggregations import Aggregation, Aggregations
from storage.events.relations import REFERENCE, REPLACE, THREAD
from storage.rooms.sent_transactions import DELAYED, SentTransactionStore
from storage.rooms.sticky_events import MAX_STICKY_MS

BUNDLE_LEVELS: Final = 2
"""An event comes with the latest event of its thread, and that one with its own aggregations; these
come without further ones."""

Redactions = Mapping[int, VisibleEvent]
"""Redactions by their event numbers."""
NO_REDACTIONS: Final[Redactions] = {}

_encode = msgspec.json.encode
_event: Final = attrgetter("event")
_is_plain: Final = attrgetter("is_plain")
_has_plain_event: Final = attrgetter("event.is_plain")
_sender: Final = attrgetter("event.sender")
_sent: Final = attrgetter("sent")
_first: Final = itemgetter(0)
_nid: Final = attrgetter("nid")
_client_prefix: Final = attrgetter("client_prefix")
_origin_server_ts: Final = attrgetter("event.origin_server_ts")

_CLIENT_FORM: Final = b'%b,"unsigned":{"age":%d,"membership":%b%b%b'
"""The event itself, its age, the reader's membership, other members of `unsigned`, the end."""
_membership: Final = attrgetter("membership")
_MEMBERSHIPS: Final = {
    membership: _encode(membership) for membership in ("join", "leave", "invite", "knock", "ban")
}
_JOINED: Final = _MEMBERSHIPS["join"]


class ClientEvents:
    """Makes the client form of pages of events."""

    def __init__(
        self,
        *,
        events: RoomEvents,
        sent_transactions: SentTransactionStore,
        aggregations: Aggregations,
        sticky_events: StickyEvents,
        now_ms: Callable[[], int],
    ) -> None:
        self._events = events
        self._aggregations = aggregations
        self._sent = sent_transactions
        self._sticky = sticky_events
        self._now_ms = now_ms

    async def present(
        self,
        user_id: UserID,
        device_id: DeviceID | None,
        seen: Sequence[VisibleEvent],
        *,
        with_room_id: bool,
        bundled_in: Set[int] | None = None,
    ) -> list[msgspec.Raw]:
        """Return the events as this device gets them, in the given order.

        They come with their aggregations. If `bundled_in` is given, only events in rooms of these
        numbers do.
        """
        parents: list[StoredEvent] = []
        if bundled_in is None:
            parents = list(map(_event, seen))
        elif bundled_in:
            parents = [each.event for each in seen if each.event.room_nid in bundled_in]
        bundles = await self._bundle(user_id, device_id, parents, BUNDLE_LEVELS) if parents else {}
        return await self._present(user_id, device_id, seen, bundles, with_room_id)

    def present_messages(
        self, user_id: UserID, device_id: DeviceID | None, messages: Sequence[StoredEvent]
    ) -> list[msgspec.Raw] | None:
        """Return messages that a member sees without filtering (`Visibility.shows_plainly`), as
        `present` does but without room IDs and aggregations. None if it is not in memory whether
        this device sent one of them."""
        now = self._now_ms()
        presented: list[msgspec.Raw] = []
        for stored in messages:
            event, extra = stored.event, b""
            if device_id is not None and event.sender == user_id:
                if stored.sent is None:
                    return None
                extra = _transaction(stored.sent, device_id)
            parts = (stored.client_prefix, now - event.origin_server_ts, _JOINED, extra, b"}}")
            presented.append(msgspec.Raw(_CLIENT_FORM % parts))
        return presented

    async def find_redactions(self, user_id: UserID, events: Iterable[StoredEvent]) -> Redactions:
        """Return the redactions of these events that the user may see, for `present_state_event`.

        spec: client-server-api#redactions
        """
        redactions = {
            event.redacted_by
            for event in filterfalse(_is_plain, events)
            if event.redacted_by is not None
        }
        return await self.get_visible_redactions(user_id, redactions)

    async def get_visible_redactions(
        self, user_id: UserID, redactions: Collection[int]
    ) -> Redactions:
        """Return those of the redactions, by number, that the user may see."""
        return (
            await self._aggregations.get_visible(user_id, redactions)
            if redactions
            else NO_REDACTIONS
        )

    async def _present(
        self,
        user_id: UserID,
        device_id: DeviceID | None,
        seen: Sequence[VisibleEvent],
        bundles: Mapping[int, bytes],
        with_room_id: bool,
    ) -> list[msgspec.Raw]:
        now = self._now_ms()
        extras = await self._load_extras(user_id, device_id, seen)
        for stored in filterfalse(_is_plain, map(_event, seen)):
            if stored.event.sticky_ms is not None:
                extras[stored.nid] = extras.get(stored.nid, b"") + self._time_to_live(stored, now)
        for nid, bundle in bundles.items():
            extras[nid] = extras.get(nid, b"") + b',"m.relations":' + bundle
        memberships = _MEMBERSHIPS
        if unusual := set(map(_membership, seen)) - _MEMBERSHIPS.keys():
            memberships = {
                **_MEMBERSHIPS,
                **{membership: _encode(membership) for membership in unusual},
            }
        events = list(map(_event, seen))
        ends: Iterable[bytes] = repeat(b"}}")
        if with_room_id:
            ends = [b'},"room_id":"%b"}' % event.event.room_id.encode() for event in events]
        parts = zip(
            map(_client_prefix, events),
            map(now.__sub__, map(_origin_server_ts, events)),
            map(memberships.__getitem__, map(_membership, seen)),
            map(extras.get, map(_nid, events), repeat(b"")),
            ends,
            strict=False,
        )
        return list(map(msgspec.Raw, map(_CLIENT_FORM.__mod__, parts)))

    def _time_to_live(self, event: StoredEvent, now: int) -> bytes:
        """Return the remaining time for which an event is sticky, as a member of `unsigned` with a
        leading comma; empty once that time is over (MSC4354)."""
        ends = self._sticky.end_of(event.nid)
        if ends is None:
            ends = min(event.event.origin_server_ts, now) + min(
                event.event.sticky_ms or 0, MAX_STICKY_MS
            )
        return b',"msc4354_sticky_duration_ttl_ms":%d' % (ends - now) if ends > now else b""

    async def _bundle(
        self,
        user_id: UserID,
        device_id: DeviceID | None,
        events: Sequence[StoredEvent],
        levels: int,
    ) -> dict[int, bytes]:
        """Return `m.relations` of those events that have aggregations.

        spec: client-server-api#aggregations-of-child-events
        """
        found = await self._aggregations.load(user_id, events) if events else {}
        if not found:
            return {}
        latest = [each.thread.latest for each in found.values() if each.thread is not None]
        edits = [each.edit for each in found.values() if each.edit is not None]
        nested: Mapping[int, bytes] = {}
        if levels > 1:
            nested = await self._bundle(
                user_id, device_id, [each.event for each in latest], levels - 1
            )
        children = {each.event.nid: each for each in (*latest, *edits)}
        presented = await self._present(
            user_id, device_id, list(children.values()), nested, with_room_id=True
        )
        forms = dict(zip(children, presented, strict=True))
        return {nid: _encode(_bundle_of(each, forms)) for nid, each in found.items()}

    async def _load_extras(
        self, user_id: UserID, device_id: DeviceID | None, seen: Sequence[VisibleEvent]
    ) -> dict[int, bytes]:
        """Return further members of `unsigned`, with a leading comma, for those events that have
        any."""
        events: list[StoredEvent] = list(map(_event, seen))
        extras: dict[int, bytes] = {}
        own: list[StoredEvent] = []
        if device_id is not None:
            own = list(compress(events, map(user_id.__eq__, map(_sender, events))))
        if own:
            if None in map(_sent, own):
                unknown = [event for event in own if event.sent is None]
                found = await self._sent.get_txn_ids([event.nid for event in unknown])
                for event in unknown:
                    event.sent = found.get(event.nid, NO_TRANSACTION)
            # most were sent by other devices of the user
            for event in compress(
                own, map({device_id, ""}.__contains__, map(_first, map(_sent, own)))
            ):
                if event.sent is not None and (extra := _transaction(event.sent, device_id)):
                    extras[event.nid] = extra
        special_seen = list(filterfalse(_has_plain_event, seen))
        special: list[StoredEvent] = list(map(_event, special_seen))
        if not special:
            return extras
        unseen = await self._find_former(user_id, special_seen)
        # a former member sees an event that was redacted later as redacted, but not the redaction
        visible_redactions = await self.find_redactions(user_id, special)
        loaded = await self._events.get_events(unseen) if unseen else {}
        loaded = await self._aggregations.remove_erased_content(user_id, loaded)
        for event in special:
            extra = extras.get(event.nid, b"")
            if event.replaces is not None and event.replaces in loaded:
                former = loaded[event.replaces].event
                extra += b',"replaces_state":%s,"prev_sender":%s,"prev_content":%s' % (
                    _encode(former.event_id),
                    _encode(former.sender),
                    _encode(former.content),
                )
            if event.redacted_by is not None and event.redacted_by in visible_redactions:
                extra += b"," + _reason(visible_redactions[event.redacted_by])
            if extra:
                extras[event.nid] = extra
        return extras

    async def _find_former(self, user_id: UserID, seen: Sequence[VisibleEvent]) -> set[int]:
        """Return the state events that these replaced, as far as the user may know them. A user who
        was joined knew the room's state."""
        known, unseen = set[int](), set[int]()
        for each in seen:
            if each.event.replaces is not None:
                (known if each.membership == "join" else unseen).add(each.event.replaces)
        unseen -= known
        return (
            known | (await self._aggregations.get_visible(user_id, unseen)).keys()
            if unseen
            else known
        )


def _transaction(sent: tuple[str, str], device_id: DeviceID | None) -> bytes:
    """Return the transaction ID or delay ID of an event for the user's device, with a leading
    comma. `sent`: as in `StoredEvent`."""
    of_device, txn_id = sent
    if not txn_id:
        return b""
    if of_device == device_id:
        return b',"transaction_id":' + _encode(txn_id)
    if not of_device and txn_id.startswith(DELAYED):
        return b',"org.matrix.msc4140.delay_id":' + _encode(txn_id[len(DELAYED) :])
    return b""


def _bundle_of(aggregation: Aggregation, forms: Mapping[int, msgspec.Raw]) -> dict[str, Any]:
    bundle: dict[str, Any] = {}
    if aggregation.edit is not None:
        bundle[REPLACE] = forms[aggregation.edit.event.nid]
    if aggregation.thread is not None:
        bundle[THREAD] = {
            "latest_event": forms[aggregation.thread.latest.event.nid],
            "count": aggregation.thread.count,
            "current_user_participated": aggregation.thread.participated,
        }
    if aggregation.references:
        bundle[REFERENCE] = {
            "chunk": [{"event_id": event_id} for event_id in aggregation.references]
        }
    return bundle


def present_state_event(
    event: StoredEvent, *, with_room_id: bool, reasons: Redactions = NO_REDACTIONS
) -> msgspec.Raw:
    """Return the client format of an event of the state: in `unsigned` is only the redaction, if
    any."""
    head = _head(event, with_room_id)
    if event.redacted_by is not None and event.redacted_by in reasons:
        return msgspec.Raw(b'%b,"unsigned":{%b}}' % (head, _reason(reasons[event.redacted_by])))
    return msgspec.Raw(head + b"}")


def present_state(
    events: Iterable[StoredEvent], reasons: Redactions, *, with_room_id: bool = True
) -> list[msgspec.Raw]:
    """Return the client format of many events of the state."""
    if reasons:
        return [
            present_state_event(event, with_room_id=with_room_id, reasons=reasons)
            for event in events
        ]
    if not with_room_id:
        return list(map(msgspec.Raw, map(b"%b}".__mod__, map(_client_prefix, events))))
    return [
        msgspec.Raw(b'%b,"room_id":"%b"}' % (event.client_prefix, event.event.room_id.encode()))
        for event in events
    ]


def present_stripped(events: Iterable[Event | StrippedEvent]) -> list[dict[str, Any]]:
    """Return stripped state. spec: client-server-api#stripped-state"""
    return [
        {
            "type": event.type,
            "state_key": event.state_key,
            "sender": event.sender,
            "content": event.content,
        }
        for event in events
    ]


def select_fields(events: Iterable[msgspec.Raw], paths: Collection[str]) -> list[Any]:
    """Return the events with only those of their properties that the dot-separated paths name.

    spec: appendices#dot-separated-property-paths, client-server-api#filtering
    """
    split = [_split_path(path) for path in paths]
    filtered: list[Any] = []
    for raw in events:
        event = msgspec.json.decode(raw)
        result: dict[str, Any] = {}
        for path in split:
            _copy_path(event, result, path)
        filtered.append(result)
    return filtered


def _reason(redaction: VisibleEvent) -> bytes:
    return b'"redacted_because":' + bytes(present_state_event(redaction.event, with_room_id=True))


def _head(event: StoredEvent, with_room_id: bool) -> bytes:
    """Return the part of the client format that is the same for all readers."""
    if with_room_id:
        return b'%b,"room_id":"%b"' % (event.client_prefix, event.event.room_id.encode())
    return event.client_prefix


def _split_path(path: str) -> list[str]:
    parts = [""]
    escaped = False
    for character in path:
        if escaped:
            parts[-1] += character if character in ".\\" else "\\" + character
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == ".":
            parts.append("")
        else:
            parts[-1] += character
    if escaped:
        parts[-1] += "\\"
    return parts


def _copy_path(source: Any, target: dict[str, Any], path: Sequence[str]) -> None:
    for name in path[:-1]:
        if not isinstance(source, dict) or name not in source:
            return
        source = source[name]
        following = target.setdefault(name, {})
        if not isinstance(following, dict):
            return
        target = following
    if isinstance(source, dict) and path[-1] in source:
        target[path[-1]] = source[path[-1]]
