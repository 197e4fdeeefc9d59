"""What goes beside the rooms: messages to the device, its keys, account data, receipts, typing.

Proposals: MSC3885 (to_device), MSC3884 (e2ee), MSC3959 (account_data), MSC3960 (receipts), MSC4508
(typing), MSC4308 (thread_subscriptions), MSC4262 (profiles), MSC4480 (sticky_events), MSC4360
(threads).
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import msgspec

from federation.protocol.ids import UserID
from federation.rooms.relations import read_relation
from homeserver.services.account_data.ignored_users import IgnoredUsers
from homeserver.services.account_data.room_account_data_cache import KeptAccountData
from homeserver.services.filters.event_filters import NO_FILTER
from homeserver.services.push.push_rules import account_data_events
from homeserver.services.rooms.thread_subscriptions import ThreadSubscriptions
from homeserver.services.rooms.thread_updates import Thread, ThreadUpdates
from homeserver.services.sliding_sync.connections import LIVE, Connection, StateChanges, not_live
from homeserver.services.sliding_sync.lists import Selection
from homeserver.services.sliding_sync.profiles import ProfileNews
from homeserver.services.sliding_sync.receipts import ReceiptNews
from homeserver.services.sliding_sync.request import (
    Extensions,
    Scope,
    SlidingRequest,
    StickyRequest,
    ThreadsRequest,
    ThreadSubscriptionsRequest,
    ToDeviceRequest,
)
from homeserver.services.sliding_sync.room_work import RoomWork
from homeserver.services.sliding_sync.typing_views import TypingViews, View
from homeserver.services.streams.recent_changes import RecentChanges
from homeserver.services.streams.sync_tokens import SyncToken
from homeserver.services.sync.devices import NO_LISTS, DeviceNewsReader
from homeserver.services.sync.request import STATE_AFTER, Range, SyncRequest
from homeserver.services.sync.sticky import StickyReader
from homeserver.services.sync.sync import typing_event
from storage.account_data.account_data import AccountData, AccountDataStore
from storage.encryption.device_keys import KeyCounts
from storage.engine.streams import Topic
from storage.events.relations import THREAD
from storage.rooms.rooms import RoomStore

EVERYWHERE: Final = 0
"""Stands where the number of a room would, for account data that is of no room."""

NO_ACCOUNT_DATA: Final[Mapping[str, Any]] = {"global": [], "rooms": {}}
NO_ROOMS: Final[Mapping[str, Any]] = {"rooms": {}}

NEVER: Final = -1
"""Stands for the position of what was not told at all, where LIVE is 0."""

FEW_ROOMS: Final = 50
"""So many rooms come into view at once as a rule, at most."""


class ExtensionParts(msgspec.Struct, frozen=True):
    """What extensions are made of."""

    devices: DeviceNewsReader
    account_data: AccountDataStore
    kept_data: KeptAccountData
    receipts: ReceiptNews
    recent: RecentChanges
    rooms: RoomStore
    ignored: IgnoredUsers
    threads: ThreadSubscriptions
    profiles: ProfileNews
    sticky: StickyReader
    typing_views: TypingViews
    thread_updates: ThreadUpdates


class ExtensionNews(msgspec.Struct, gc=False):
    """The extensions of an answer."""

    answer: dict[str, Any]
    """As they go into it."""
    is_news: bool = False
    """Whether there is anything new in them."""
    is_all: bool = True
    """Whether all that was new is."""
    typing: View | None = None
    """What the client is told of who types; None if it did not ask, or that is not known."""


class ExtensionReader:
    """Makes the extensions of answers."""

    def __init__(self, parts: ExtensionParts) -> None:
        self._parts = parts

    async def read(
        self,
        request: SlidingRequest,
        connection: Connection,
        selection: Selection,
        works: Sequence[RoomWork],
        token: SyncToken,
        changes: StateChanges,
    ) -> ExtensionNews:
        """The extensions of an answer up to the token."""
        wanted = request.extensions
        answer: dict[str, Any] = {}
        is_news, is_all = False, True
        view: View | None = None
        if wanted.to_device is not None:
            answer["to_device"] = await self._to_device(request, wanted.to_device, token.position)
            is_news = bool(answer["to_device"]["events"])
        if wanted.e2ee:
            answer["e2ee"], e2ee_news = await self._e2ee(request, connection, token.position)
            is_news = is_news or e2ee_news
        if wanted.account_data is None:
            if connection.state.account_data:
                await self._account_data(request, connection, set(), (), token.position, changes)
        else:
            scope = {EVERYWHERE, *_rooms_in(wanted.account_data, selection)}
            data = await self._account_data(
                request, connection, scope, works, token.position, changes
            )
            answer["account_data"] = data
            is_news = is_news or bool(data["global"] or data["rooms"])
        if wanted.receipts is None:
            self._parts.receipts.end(request, connection, set(), changes)
        else:
            scope = _rooms_in(wanted.receipts, selection) & selection.joined
            receipts, is_all = await self._parts.receipts.read(
                request, connection, scope, works, token.position, changes
            )
            answer["receipts"] = {"rooms": receipts}
            is_news = is_news or bool(receipts)
        if wanted.typing is not None:
            scope = _rooms_in(wanted.typing.scope, selection) & selection.joined
            typing, typing_news, view = await self._typing(request, connection, scope, works)
            answer[wanted.typing.name] = {"rooms": typing}
            is_news = is_news or typing_news
        if wanted.thread_subscriptions is not None:
            threads = await self._threads(
                request, connection, wanted.thread_subscriptions, token.position
            )
            answer[wanted.thread_subscriptions.name] = threads
            is_news = is_news or bool(threads)
        if wanted.profiles is None:
            changes.set_profiles(None)
        else:
            scope = _rooms_in(wanted.profiles.scope, selection) & selection.joined
            fields, user_id = wanted.profiles.fields, request.caller.user_id
            lazy = {nid for nid in scope if selection.configs[nid].required_state.lazy_members}
            users, told = await self._parts.profiles.read(
                user_id, fields, connection, scope, lazy, works, token.position
            )
            changes.set_profiles(told)
            answer[wanted.profiles.name] = {"users": users} if users else {}
            is_news = is_news or bool(users) or bool(told.left)
        if wanted.sticky is not None:
            sticky = await self._sticky(request, wanted.sticky, selection, works, token.position)
            answer[wanted.sticky.name] = sticky
            is_news = is_news or bool(sticky)
        if wanted.threads is not None and (
            said := await self._said(request, connection, wanted.threads, works, token)
        ):
            answer[wanted.threads.name] = said
            is_news = True
        return ExtensionNews(answer, is_news, is_all, view)

    async def read_without_news(
        self,
        request: SlidingRequest,
        connection: Connection,
        now: SyncToken,
        moved_to: Collection[int] | None,
        coming: Collection[int] = (),
        new: Sequence[RoomWork] = (),
    ) -> ExtensionNews | None:
        """The extensions for a client whose connection has all up to its `pos`, since when nothing
        has happened but messages in rooms that it has. None where that is not enough to know them.

        `moved_to`: the rooms in view now, all of them joined, if they are others than before.
        `coming`: those that were not in view; of the others it has all. `new`: some that it does
        not have: see `read_with_new`.
        """
        wanted, is_news = request.extensions, False
        view: View | None = None
        if wanted.profiles is not None or wanted.sticky is not None or wanted.threads is not None:
            return (
                None  # messages bring people and sticky events into view, and are said in threads
            )
        if coming and not _is_known_of(coming, wanted, connection, new):
            return None
        answer: dict[str, Any] = {}
        if wanted.to_device is not None:
            if not self._parts.devices.nothing_waits(
                request.caller, Range(connection.position, now.position)
            ):
                return None
            answer["to_device"] = {
                "next_batch": str(max(wanted.to_device.since, now.position)),
                "events": [],
            }
        if wanted.e2ee:
            counts = self._parts.devices.known_counts(request.caller)
            answer["e2ee"] = _e2ee_json(
                counts or await self._parts.devices.get_counts(request.caller)
            )
            answer["e2ee"]["device_lists"] = NO_LISTS
        if wanted.account_data is not None:
            answer["account_data"] = NO_ACCOUNT_DATA
        if wanted.receipts is not None:
            answer["receipts"] = NO_ROOMS
        if wanted.typing is not None:
            typing: dict[str, Any] = {}
            if moved_to is not None:
                typing, is_news, view = await self._typing(request, connection, set(moved_to), new)
            else:
                view = self._parts.typing_views.find(connection.key, request.pos)
            answer[wanted.typing.name] = {"rooms": typing}
        if wanted.thread_subscriptions is not None:
            answer[wanted.thread_subscriptions.name] = {}
        return ExtensionNews(answer, is_news, typing=view)

    async def read_with_new(
        self,
        request: SlidingRequest,
        connection: Connection,
        now: SyncToken,
        moved_to: Collection[int],
        coming: Collection[int],
        new: Sequence[RoomWork],
        changes: StateChanges,
    ) -> ExtensionNews | None:
        """The same, where some of the rooms in view are new to the client, since there were
        messages in them."""
        read = await self.read_without_news(request, connection, now, moved_to, coming, new)
        if read is None:
            return None
        if request.extensions.account_data is not None:
            kept = await self._parts.kept_data.of_rooms(
                request.caller.user_id, [work.room.room_id for work in new]
            )
            rooms = {room_id: _events(data) for room_id, data in kept.items()}
            read.answer["account_data"] = {**NO_ACCOUNT_DATA, "rooms": rooms}
            for work in new:
                changes.set_account_data(work.room.room_nid, LIVE)
        if request.extensions.receipts is not None:
            receipts = await self._parts.receipts.read_of_new(
                request, connection, new, now.position, changes
            )
            if receipts is None:
                return None
            read.answer["receipts"] = {"rooms": receipts}
        return read

    def end(
        self, request: SlidingRequest, connection: Connection, news: View | None, pos: str
    ) -> bool:
        """This of who types goes out with the answer that has this `pos`. False if another that has
        it told something else."""
        return news is None or self._parts.typing_views.keep(connection.key, request.pos, pos, news)

    async def _to_device(
        self, request: SlidingRequest, wanted: ToDeviceRequest, upto: int
    ) -> dict[str, Any]:
        """Messages since a token of their own, which the client keeps whatever becomes of its
        connections."""
        if wanted.since > upto:
            return {"next_batch": str(wanted.since), "events": []}
        as_synced = _as_sync(request, SyncToken(wanted.since, 0))
        messages, reached, _ = await self._parts.devices.find_messages(
            as_synced, Range(wanted.since, upto)
        )
        if len(messages) > wanted.limit:
            messages = messages[: wanted.limit]
            reached = messages[-1].position
        return {
            "next_batch": str(reached),
            "events": [msgspec.Raw(message.content) for message in messages],
        }

    async def _e2ee(
        self, request: SlidingRequest, connection: Connection, upto: int
    ) -> tuple[dict[str, Any], bool]:
        moved = connection.token is not None and connection.position < upto
        news = await self._parts.devices.read(
            _as_sync(request, connection.token if moved else None),
            Range(connection.position, upto),
            (),
        )
        answer = _e2ee_json(news.counts)
        if connection.token is not None:
            answer["device_lists"] = news.lists
        return answer, bool(news.lists["changed"] or news.lists["left"])

    async def _account_data(
        self,
        request: SlidingRequest,
        connection: Connection,
        scope: set[int],
        works: Sequence[RoomWork],
        upto: int,
        changes: StateChanges,
    ) -> dict[str, Any]:
        """What is new in the scope, and all of rooms with which the client begins anew; what is new
        outside it is noted as missed."""
        store, user_id, known = (
            self._parts.account_data,
            request.caller.user_id,
            connection.state.account_data,
        )
        changed = connection.position < upto and self._parts.recent.concerns_user(
            user_id, Topic.ACCOUNT_DATA, connection.position
        )
        new = (scope - known.keys()) | (
            scope & {work.room.room_nid for work in works if work.initial}
        )
        missed = {nid: upto for nid, upto in not_live(known) if nid in scope and nid not in new}
        found: dict[int, Mapping[str, bytes]] = {}
        if new and (EVERYWHERE in new or len(new) > FEW_ROOMS):
            whole = await self._by_room(await self._parts.kept_data.of_user(user_id))
            found |= {nid: data for nid, data in whole.items() if nid in new}
        elif new:  # of all that the user keeps, most is of rooms that are not in view
            ids = {
                room.room_id: nid
                for nid, room in (await self._parts.rooms.get_rooms_by_nid(new)).items()
            }
            kept = await self._parts.kept_data.of_rooms(user_id, ids)
            found |= {ids[room_id]: data for room_id, data in kept.items()}
        if known and (changed or missed):
            since = min([connection.position, *missed.values()])
            latest = await self._by_room(await store.get_account_data_since(user_id, since, upto))
            for nid, data in latest.items():
                if nid in missed or (changed and nid in scope and nid not in new):
                    found[nid] = data
                elif changed and nid not in scope and known.get(nid) == LIVE:
                    changes.set_account_data(nid, connection.position)
        for nid in (*new, *missed):
            changes.set_account_data(nid, LIVE)
        rooms = await self._parts.rooms.get_rooms_by_nid(nid for nid in found if nid != EVERYWHERE)
        return {
            "global": account_data_events(
                user_id, found.get(EVERYWHERE, {}), first=EVERYWHERE in new
            ),
            "rooms": {
                rooms[nid].room_id: _events(data)
                for nid, data in found.items()
                if nid != EVERYWHERE
            },
        }

    async def _by_room(self, data: AccountData) -> dict[int, Mapping[str, bytes]]:
        """By numbers of rooms, and what is of no room under EVERYWHERE."""
        rooms = await self._parts.rooms.get_rooms(data.rooms)
        by_room: dict[int, Mapping[str, bytes]] = {
            rooms[room_id].room_nid: entries
            for room_id, entries in data.rooms.items()
            if room_id in rooms
        }
        if data.everywhere:
            by_room[EVERYWHERE] = data.everywhere
        return by_room

    async def _typing(
        self,
        request: SlidingRequest,
        connection: Connection,
        scope: set[int],
        works: Sequence[RoomWork],
    ) -> tuple[dict[str, Any], bool, View]:
        begun = {work.room.room_nid for work in works if work.initial}
        found = self._parts.typing_views.move(
            connection.key, request.pos, connection.token, scope, begun
        )
        if not found.rooms:
            return {}, False, found.view
        rooms = await self._parts.rooms.get_rooms_by_nid(found.rooms)
        ignored = await self._parts.ignored.of_user(UserID(connection.key.user_id))
        events = {
            rooms[nid].room_id: typing_event(users, ignored) for nid, users in found.rooms.items()
        }
        return events, found.is_news, found.view

    async def _threads(
        self,
        request: SlidingRequest,
        connection: Connection,
        wanted: ThreadSubscriptionsRequest,
        upto: int,
    ) -> dict[str, Any]:
        """The threads that the user follows from now on, and no longer."""
        user_id, since = request.caller.user_id, connection.position
        if not self._parts.recent.concerns_user(user_id, Topic.THREAD_SUBSCRIPTION, since):
            return {}
        return await self._parts.threads.read(
            user_id, since, upto, wanted.limit, further="prev_batch"
        )

    async def _said(
        self,
        request: SlidingRequest,
        connection: Connection,
        wanted: ThreadsRequest,
        works: Sequence[RoomWork],
        token: SyncToken,
    ) -> dict[str, Any]:
        """In which threads something was said since the client heard last. Who begins has missed
        nothing yet."""
        since, user_id = connection.position, request.caller.user_id
        if connection.token is None or since >= token.position:
            return {}
        recent = self._parts.recent.rooms_since(user_id, since)
        told: dict[Thread, int] | None = None
        if not wanted.with_roots:
            told = {}
            for work in works:
                for seen in work.shown:
                    relation = read_relation(seen.event.event)
                    if (
                        relation is not None
                        and relation.rel_type == THREAD
                        and (seen.event.position or 0) > since
                    ):
                        thread = work.room.room_nid, relation.target
                        told[thread] = told.get(thread, 0) + 1
        return await self._parts.thread_updates.read(
            request.caller,
            None if recent is None else recent.events,
            since,
            token.position,
            wanted.limit,
            told,
        )

    async def _sticky(
        self,
        request: SlidingRequest,
        wanted: StickyRequest,
        selection: Selection,
        works: Sequence[RoomWork],
        upto: int,
    ) -> dict[str, Any]:
        """Sticky events of the rooms that a list shows, in its window or not, since a token of
        their own.

        The oldest first, as many as are wanted; of rooms that were joined since then all of them.
        """
        sticky, since = self._parts.sticky, wanted.since
        some = await sticky.rooms() & selection.rows.keys()
        if not some:
            return {}
        rows = [
            row for listed in selection.listed.values() for row in listed if row.room_nid in some
        ]
        rows += [selection.rows[nid] for nid in selection.subscribed.values() if nid in some]
        joined = {row.room_nid: row for row in rows if row.membership == "join"}
        new = {nid for nid, row in joined.items() if row.position > since}
        ignored = await self._parts.ignored.of_user(request.caller.user_id)
        shown = {seen.event.nid for work in works for seen in work.shown}
        ranges = {nid: (0 if nid in new else since, upto) for nid in joined}
        found = await sticky.find(ranges, shown, ignored)
        news = sorted(
            row.position for rows in found.values() for row in rows if row.position > since
        )
        reached = news[wanted.limit - 1] if len(news) > wanted.limit else upto
        for nid in list(found):
            found[nid] = [row for row in found[nid] if row.position <= reached]
            if not found[nid]:
                del found[nid]
        if not found:
            return {}
        events = await sticky.present(request.caller, joined, found)
        rooms = await self._parts.rooms.get_rooms_by_nid(events)
        return {
            "next_batch": str(reached),
            "rooms": {rooms[nid].room_id: {"events": each} for nid, each in events.items()},
        }


def _as_sync(request: SlidingRequest, since: SyncToken | None) -> SyncRequest:
    return SyncRequest(
        request.caller, since, NO_FILTER, full_state=False, state_section=STATE_AFTER
    )


def _e2ee_json(counts: KeyCounts) -> dict[str, Any]:
    return {
        "device_one_time_keys_count": counts.one_time,
        "device_unused_fallback_key_types": counts.unused_fallback,
    }


def _is_known_of(
    rooms: Collection[int], wanted: Extensions, connection: Connection, new: Sequence[RoomWork]
) -> bool:
    """Whether the client has been told all of account data and receipts of these rooms but for the
    new ones, which all lists are asked for."""
    begun = {work.room.room_nid for work in new}
    others = [nid for nid in rooms if nid not in begun]
    if wanted.typing is not None and wanted.typing.scope.lists is not None:
        return False
    for scope, known in (
        (wanted.account_data, connection.state.account_data),
        (wanted.receipts, connection.state.receipts),
    ):
        if scope is None:
            continue
        if scope.lists is not None:
            return False
        if any(known.get(nid, NEVER) != LIVE for nid in others):
            return False
    return True


def _rooms_in(scope: Scope, selection: Selection) -> set[int]:
    """The rooms that an extension is wanted for."""
    found: set[int] = set()
    for name, window in selection.windows.items():
        if scope.lists is None or name in scope.lists:
            found.update(window)
    found.update(
        nid
        for room_id, nid in selection.subscribed.items()
        if scope.rooms is None or room_id in scope.rooms
    )
    return found


def _events(data: Mapping[str, bytes]) -> list[dict[str, Any]]:
    return [{"type": type, "content": msgspec.Raw(content)} for type, content in data.items()]
