"""Thread subscriptions: users subscribe to threads, or their clients do it when the user is
mentioned.

Proposals: MSC4306 (subscriptions), MSC4308 (how clients receive them).
"""

from collections.abc import Mapping
from typing import Any, Final

from federation.protocol.errors import Forbidden, InvalidParam, MatrixError, NotFound
from federation.protocol.ids import EventID, RoomID, UserID, is_event_id
from federation.rooms.relations import read_relation
from federation.rooms.visibility import VisibleEvent
from homeserver.api.requester import Requester
from homeserver.services.rooms.reading import RoomReading
from homeserver.services.streams.sync_tokens import SyncToken, parse_room_token
from storage.engine.streams import Streams
from storage.events.relations import THREAD
from storage.rooms.thread_subscriptions import ThreadSubscriptionStore

MAX_CHANGES: Final = 100
"""The maximum number of changes of a page."""


class NotInThread(MatrixError):
    """The event that a client names as the cause is in another thread, or in none."""

    errcode, status, default_text = "M_NOT_IN_THREAD", 400, "The event is not in that thread"


class ConflictingUnsubscription(MatrixError):
    """The user unsubscribed from the thread after the event that the client names as the cause."""

    errcode, status, default_text = (
        "M_CONFLICTING_UNSUBSCRIPTION",
        409,
        "You have unsubscribed from the thread since",
    )


class ThreadSubscriptions:
    """Reads and changes thread subscriptions."""

    def __init__(
        self, *, store: ThreadSubscriptionStore, reading: RoomReading, streams: Streams
    ) -> None:
        self._store = store
        self._reading = reading
        self._streams = streams

    async def get(self, caller: Requester, room_id: RoomID, root: EventID) -> dict[str, bool]:
        """Return the subscription to a thread. Raises NotFound, also if the caller may not see the
        thread."""
        await self._see(caller, room_id, root)
        row = await self._store.get_subscription(caller.user_id, room_id, root)
        if row is None or not row.subscribed:
            raise NotFound("You are not subscribed to this thread")
        return {"automatic": row.automatic}

    async def do_subscribe(
        self, caller: Requester, room_id: RoomID, root: EventID, cause: EventID | None
    ) -> None:
        """Subscribe to a thread: for the user, or with a cause automatically.

        Raises NotFound, NotInThread, ConflictingUnsubscription.
        """
        await self._see(caller, room_id, root)
        if cause is None:
            await self._store.subscribe(caller.user_id, room_id, root)
            return
        try:
            event = (await self._see(caller, room_id, cause)).event
        except NotFound:
            raise NotInThread from None
        relation = read_relation(event.event)
        if relation is None or relation.rel_type != THREAD or relation.target != root:
            raise NotInThread
        if not await self._store.subscribe_automatically(
            caller.user_id, room_id, root, event.position
        ):
            raise ConflictingUnsubscription

    async def do_unsubscribe(self, caller: Requester, room_id: RoomID, root: EventID) -> None:
        """Unsubscribe from a thread; success if there is no subscription. Raises NotFound."""
        await self._see(caller, room_id, root)
        await self._store.unsubscribe(caller.user_id, room_id, root)

    async def get_page(
        self, caller: Requester, from_: str | None, to: str | None, limit: int
    ) -> dict[str, Any]:
        """Return a page of the latest changes, going back. Raises InvalidParam."""
        if limit < 1:
            raise InvalidParam("A page has at least one entry")
        upto = self._streams.current() if from_ is None else _parse(from_)
        after = 0
        if to is not None:
            place = parse_room_token(to)
            if not isinstance(place, SyncToken):
                raise InvalidParam("to: not a position of sliding sync")
            after = place.position
        return await self.read(caller.user_id, after, upto, limit, next_key="end")

    async def read(
        self, user_id: UserID, after: int, upto: int, limit: int, *, next_key: str
    ) -> dict[str, Any]:
        """Return the newest changes in a range of positions, in client format. If there are more, a
        token is under the key `next_key`."""
        limit = min(limit, MAX_CHANGES)
        rows = await self._store.get_changes(user_id, after, upto, limit + 1)
        subscribed: dict[str, dict[str, Mapping[str, object]]] = {}
        unsubscribed: dict[str, dict[str, Mapping[str, object]]] = {}
        for row in rows[:limit]:
            if row.subscribed:
                entry = {"automatic": row.automatic, "bump_stamp": row.position}
                subscribed.setdefault(row.room_id, {})[row.root] = entry
            else:
                unsubscribed.setdefault(row.room_id, {})[row.root] = {"bump_stamp": row.position}
        response: dict[str, Any] = {}
        if subscribed:
            response["subscribed"] = subscribed
        if unsubscribed:
            response["unsubscribed"] = unsubscribed
        if len(rows) > limit:
            response[next_key] = str(rows[limit].position)
        return response

    async def _see(self, caller: Requester, room_id: RoomID, event_id: EventID) -> VisibleEvent:
        if not is_event_id(event_id):
            raise NotFound("This is not an event ID")
        try:
            reader = await self._reading.find_access(caller.user_id, room_id)
        except Forbidden as error:
            raise NotFound(error.text) from None
        return await self._reading.get_visible_event(caller, reader, event_id)


def _parse(token: str) -> int:
    if not (token.isascii() and token.isdigit() and len(token) <= 18):
        raise InvalidParam("from: not a token that this server gave out")
    return int(token)
