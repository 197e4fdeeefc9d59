"""People with matrix-rust-sdk, the engine of Element X, through its Python bindings.

    async with person(server, "alice", folder) as alice:
        …  # alice.client, alice.room(room_id), await alice.timeline(room_id)

What the engine tells comes as changes of lists: `Following` keeps such a list, `until` waits for
what it shall hold.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.request import Request, urlopen

import matrix_sdk_python as sdk
from matrix_sdk_python._generated.matrix_sdk import BackupDownloadStrategy
from matrix_sdk_python._generated.matrix_sdk_ui import TimelineReadReceiptTracking

from tests.helpers.real_server import RealServer

T = TypeVar("T")

PASSWORD = "correct horse"
SECONDS = 40
PAGE = 50
OPENED_EACH = 100
"""After so many looks in vain a timeline is opened again."""


async def until(what: str, look: Callable[[], T]) -> T:
    """Wait until there is something; the engine works on threads of its own."""
    for _ in range(SECONDS * 20):
        found = look()
        if found:
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"waited in vain for: {what}")


async def asked(what: str, ask: Callable[[], Awaitable[T]], wanted: Callable[[T], bool]) -> T:
    """Ask until the answer is one that is wanted."""
    for _ in range(SECONDS * 20):
        answer = await ask()
        if wanted(answer):
            return answer
        await asyncio.sleep(0.05)
    raise AssertionError(f"asked in vain for: {what}; the last answer was {answer}")


class Following:
    """A list that the engine keeps up by telling what changes in it."""

    def __init__(self) -> None:
        self.items: list[Any] = []

    def on_update(self, changes: list[Any]) -> None:
        """Called by the engine."""
        for change in changes:
            getattr(self, "_" + type(change).__name__.rpartition(".")[2].lower())(change)

    def _append(self, change: Any) -> None:
        self.items += change.values

    def _clear(self, _change: Any) -> None:
        self.items.clear()

    def _push_front(self, change: Any) -> None:
        self.items.insert(0, change.value)

    def _push_back(self, change: Any) -> None:
        self.items.append(change.value)

    def _pop_front(self, _change: Any) -> None:
        del self.items[0]

    def _pop_back(self, _change: Any) -> None:
        del self.items[-1]

    def _insert(self, change: Any) -> None:
        self.items.insert(change.index, change.value)

    def _set(self, change: Any) -> None:
        self.items[change.index] = change.value

    def _remove(self, change: Any) -> None:
        del self.items[change.index]

    def _truncate(self, change: Any) -> None:
        del self.items[change.length :]

    def _reset(self, change: Any) -> None:
        self.items = list(change.values)


class Heard:
    """Records the values that a listener was called with, the newest last."""

    def __init__(self) -> None:
        self.values: list[Any] = []

    def call(self, value: Any) -> None:
        """Called by the engine."""
        self.values.append(value)

    def on_update(self, value: Any) -> None:
        """Called by the engine."""
        self.values.append(value)

    @property
    def last(self) -> Any:
        return self.values[-1] if self.values else None


class FollowedTimeline:
    """A timeline as the engine would show it to somebody who opens the room again when it is not
    what it should be.

    On a busy machine a timeline of the engine (0.18.0 of its bindings) that is opened while its
    room comes in may take later changes to the wrong places: it has events twice, receipts at one
    of the two alone. It stays so for every listener. The store of the engine is right, and so is a
    timeline that is opened again.
    """

    def __init__(self, open_it: Callable[[], Awaitable[sdk.Timeline]]) -> None:
        self.timeline: sdk.Timeline
        self._open = open_it
        self._following = Following()
        self._handle: sdk.TaskHandle | None = None
        self._reads_back = False

    async def start(self) -> None:
        """Open it, or open it again."""
        self.end()
        self.timeline = await self._open()
        self._following = Following()
        self._handle = await self.timeline.add_listener(self._following)
        if self._reads_back:
            await self.to_the_beginning()

    def end(self) -> None:
        """Hear no more: the engine's threads outlive the test, and must not call into an
        interpreter that ends."""
        if self._handle is not None:
            self._handle.cancel()

    async def straighten(self) -> None:
        """Open it again, if it has events twice."""
        ids = [id_of(event) for event in self.events if event.is_remote]
        if len(set(ids)) < len(ids):
            await self.start()

    async def shows(self, what: str, look: Callable[[], T]) -> T:
        """Wait until it shows something. Raises AssertionError if that does not come, opened again
        and again."""
        for attempt in range(1, SECONDS * 20):
            found = look()
            if found:
                return found
            if attempt % OPENED_EACH == 0:
                await self.start()
            await asyncio.sleep(0.05)
            await self.straighten()
        told = [
            (id_of(each), text_of(each), sorted(each.read_receipts))
            for each in self.events
            if each.is_remote
        ]
        raise AssertionError(f"waited in vain for: {what}; shown is {told}")

    @property
    def events(self) -> list[sdk.EventTimelineItem]:
        """The events, oldest first."""
        items = [item.as_event() for item in list(self._following.items)]
        return [event for event in items if event is not None]

    @property
    def messages(self) -> list[str]:
        """The texts of the messages as a client shows them, after edits."""
        return [text for event in self.events if (text := text_of(event)) is not None]

    def find(self, text: str) -> sdk.EventTimelineItem | None:
        """The message with this text, once the server has it."""
        return next(
            (each for each in self.events if text_of(each) == text and each.is_remote), None
        )

    async def say(self, text: str) -> sdk.EventTimelineItem:
        """Send a message, and wait until the server has it."""
        await self.timeline.send(sdk.message_event_content_from_markdown(text))
        return await self.hears(text)

    async def hears(self, text: str) -> sdk.EventTimelineItem:
        """Wait for a message."""
        found = await self.shows(f"the message {text}", lambda: self.find(text))
        assert found is not None
        return found

    async def to_the_beginning(self) -> None:
        """Read all there is."""
        self._reads_back = True
        while not await self.timeline.paginate_backwards(10):
            pass


def text_of(event: sdk.EventTimelineItem) -> str | None:
    """The text of a message."""
    message = message_of(event)
    return None if message is None else message.body


def message_of(event: sdk.EventTimelineItem) -> Any:
    """The content of a message that is not redacted."""
    content = event.content
    if not content.is_msg_like() or not content.content.kind.is_message():
        return None
    return content.content.kind.content


def reactions_of(event: sdk.EventTimelineItem) -> dict[str, list[str]]:
    """Return the users of each reaction."""
    return {
        each.key: sorted(sender.sender_id for sender in each.senders)
        for each in event.content.content.reactions
    }


def id_of(event: sdk.EventTimelineItem) -> str:
    """The id of an event."""
    return str(event.event_or_transaction_id.event_id)


@dataclass
class Person:
    """Somebody whose client runs."""

    client: sdk.Client
    service: sdk.SyncService
    rooms: Following
    held: list[Any] = field(default_factory=list)
    """References to objects of the engine that end when they are garbage collected."""

    @property
    def user_id(self) -> str:
        return str(self.client.user_id())

    def listed(self) -> dict[str, sdk.Room]:
        """The room list."""
        return {room.id(): room for room in list(self.rooms.items)}

    async def room(
        self, room_id: str, membership: sdk.Membership = sdk.Membership.JOINED
    ) -> sdk.Room:
        """A room of the list, once the membership is this one."""

        def look() -> sdk.Room | None:
            room = self.listed().get(room_id)
            return room if room is not None and room.membership() == membership else None

        return await until(f"the room {room_id}", look)

    async def timeline(
        self, room_id: str, focus: sdk.TimelineFocus | None = None
    ) -> FollowedTimeline:
        """The timeline of an open room."""
        await self.service.room_list_service().subscribe_to_rooms([room_id])
        room = await self.room(room_id)
        configuration = sdk.TimelineConfiguration(
            focus=focus or sdk.TimelineFocus.LIVE(hide_threaded_events=True),
            filter=sdk.TimelineFilter.ALL(),
            internal_id_prefix=None,
            date_divider_mode=sdk.DateDividerMode.DAILY,
            track_read_receipts=TimelineReadReceiptTracking.ALL_EVENTS,
            report_utds=False,
        )
        followed = FollowedTimeline(lambda: room.timeline_with_configuration(configuration))
        await followed.start()
        self.held.append(followed)
        return followed


def told_receipts(server: RealServer, somebody: Person, room_id: str) -> dict[str, Any]:
    """Return the user ids of the public receipts of a room, by event, as the server sends them to a
    new client of sliding sync."""
    path = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
    wanted = {"timeline_limit": 20, "required_state": []}
    body = {"room_subscriptions": {room_id: wanted}, "extensions": {"receipts": {"enabled": True}}}
    headers = {"Authorization": f"Bearer {somebody.client.session().access_token}"}
    request = Request(
        server.url + path, json.dumps({**body, "conn_id": "test"}).encode(), headers, method="POST"
    )
    with urlopen(request, timeout=30) as answer:
        rooms = json.load(answer)["extensions"]["receipts"]["rooms"]
    content = rooms.get(room_id, {"content": {}})["content"]
    return {event_id: sorted(kinds.get("m.read", ())) for event_id, kinds in content.items()}


def published_keys(somebody: Person) -> dict[str, Any]:
    """The keys of their device, with the signatures on them, as the server gives them to everybody;
    empty: it has none."""
    user_id, device_id = somebody.user_id, str(somebody.client.device_id())
    path = f"{somebody.client.homeserver().rstrip('/')}/_matrix/client/v3/keys/query"
    headers = {"Authorization": f"Bearer {somebody.client.session().access_token}"}
    request = Request(
        path, json.dumps({"device_keys": {user_id: [device_id]}}).encode(), headers, method="POST"
    )
    with urlopen(request, timeout=30) as answer:
        found: dict[str, Any] = json.load(answer)["device_keys"][user_id].get(device_id, {})
    return found


def register(server: RealServer, name: str) -> None:
    """A new account: the engine signs in, and leaves registration to others."""
    body = {"username": name, "password": PASSWORD, "auth": {"type": "m.login.dummy"}}
    request = Request(
        f"{server.url}/_matrix/client/v3/register", json.dumps(body).encode(), method="POST"
    )
    with urlopen(request, timeout=30) as answer:
        assert answer.status == 200


@asynccontextmanager
async def person(
    server: RealServer, name: str, folder: Path, *, new: bool = True, encrypts: bool = False
) -> AsyncIterator[Person]:
    """Somebody whose client keeps its data in a folder and follows the server; stopped at the end.

    `encrypts`: as Element X does, with cross-signing from the start, and what cannot be read looked
    for in the backup.
    """
    if new:
        register(server, name)
    data = folder / f"{name}-data"
    data.mkdir(parents=True, exist_ok=True)
    builder = (
        sdk.ClientBuilder()
        .homeserver_url(server.url)
        .sqlite_store(sdk.SqliteStoreBuilder(str(data), str(data)))
        .sliding_sync_version_builder(sdk.SlidingSyncVersionBuilder.DISCOVER_NATIVE)
        .threads_enabled(True, False)
    )
    if encrypts:
        builder = (
            builder.auto_enable_cross_signing(True)
            .auto_enable_backups(True)
            .backup_download_strategy(BackupDownloadStrategy.AFTER_DECRYPTION_FAILURE)
        )
    client = await builder.build()
    session = data / "session.json"
    if session.exists():
        await client.restore_session(sdk.Session(**json.loads(session.read_text()), **_version()))
    else:
        await client.login(name, PASSWORD, "test", None)
        kept = client.session()
        fields = (
            "access_token",
            "refresh_token",
            "user_id",
            "device_id",
            "homeserver_url",
            "oauth_data",
        )
        session.write_text(json.dumps({name: getattr(kept, name) for name in fields}))
    service = await client.sync_service().with_offline_mode().finish()
    listed = Following()
    rooms = await service.room_list_service().all_rooms()
    entries = rooms.entries_with_dynamic_adapters(PAGE, listed)
    entries.controller().set_filter(sdk.RoomListEntriesDynamicFilterKind.NON_LEFT())
    stream = entries.entries_stream()
    somebody = Person(client, service, listed, [rooms, entries])
    await service.start()
    try:
        yield somebody
    finally:
        await service.stop()
        stream.cancel()
        for held in somebody.held:
            if isinstance(held, FollowedTimeline):
                held.end()


def _version() -> dict[str, Any]:
    return {"sliding_sync_version": sdk.SlidingSyncVersion.NATIVE}
