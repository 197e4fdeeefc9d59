"""Users of matrix-rust-sdk, the engine of Element X, through its Python bindings.

    async with person(server, "alice", folder) as alice:
        …  # alice.client, alice.room(room_id), await alice.timeline(room_id)

The engine reports changes of lists. `Following` applies them to a list, and `until` waits for its
expected content.
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
"""The number of failed checks after which a timeline is reopened."""


async def until(what: str, look: Callable[[], T]) -> T:
    """Poll until `look` returns a true value, and return that. The engine works in its own
    threads."""
    for _ in range(SECONDS * 20):
        found = look()
        if found:
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"no result in time: {what}")


async def request_until(
    what: str, ask: Callable[[], Awaitable[T]], wanted: Callable[[T], bool]
) -> T:
    """Repeat a request until the response is as wanted."""
    for _ in range(SECONDS * 20):
        answer = await ask()
        if wanted(answer):
            return answer
        await asyncio.sleep(0.05)
    raise AssertionError(f"no result in time: {what}; the last response was {answer}")


class Following:
    """A list that applies the changes which the engine reports."""

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


class Recorder:
    """Records the values a listener is called with, newest last."""

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
    """A timeline of the engine that is reopened when it is wrong, as if the user opens the room
    again.

    On a busy machine a timeline of the engine (0.18.0 of its bindings) that is opened while its
    room is syncing can misplace later changes: it has duplicate events, and receipts at only one of
    them. It stays wrong for all listeners. The engine's store is correct, and so is a reopened
    timeline.
    """

    def __init__(self, open_it: Callable[[], Awaitable[sdk.Timeline]]) -> None:
        self.timeline: sdk.Timeline
        self._open = open_it
        self._following = Following()
        self._handle: sdk.TaskHandle | None = None
        self._reads_back = False

    async def start(self) -> None:
        """Open the timeline, or reopen it."""
        self.end()
        self.timeline = await self._open()
        self._following = Following()
        self._handle = await self.timeline.add_listener(self._following)
        if self._reads_back:
            await self.to_the_beginning()

    def end(self) -> None:
        """Stop listening: the engine's threads outlive the test and must not call into an
        interpreter that shuts down."""
        if self._handle is not None:
            self._handle.cancel()

    async def straighten(self) -> None:
        """Reopen the timeline if it has duplicate events."""
        ids = [id_of(event) for event in self.events if event.is_remote]
        if len(set(ids)) < len(ids):
            await self.start()

    async def shows(self, what: str, look: Callable[[], T]) -> T:
        """Wait until the timeline shows something, and reopen it regularly. Raises AssertionError
        after a timeout."""
        for attempt in range(1, SECONDS * 20):
            found = look()
            if found:
                return found
            if attempt % OPENED_EACH == 0:
                await self.start()
            await asyncio.sleep(0.05)
            await self.straighten()
        shown = [
            (id_of(each), text_of(each), sorted(each.read_receipts))
            for each in self.events
            if each.is_remote
        ]
        raise AssertionError(f"no result in time: {what}; the timeline shows {shown}")

    @property
    def events(self) -> list[sdk.EventTimelineItem]:
        """Return the events, oldest first."""
        items = [item.as_event() for item in list(self._following.items)]
        return [event for event in items if event is not None]

    @property
    def messages(self) -> list[str]:
        """Return the texts as shown, after edits."""
        return [text for event in self.events if (text := text_of(event)) is not None]

    def find(self, text: str) -> sdk.EventTimelineItem | None:
        """Return the message with this text if the server has stored it."""
        return next(
            (each for each in self.events if text_of(each) == text and each.is_remote), None
        )

    async def say(self, text: str) -> sdk.EventTimelineItem:
        """Send a message, and wait until the server has stored it."""
        await self.timeline.send(sdk.message_event_content_from_markdown(text))
        return await self.receives(text)

    async def receives(self, text: str) -> sdk.EventTimelineItem:
        """Wait for a message."""
        found = await self.shows(f"the message {text}", lambda: self.find(text))
        assert found is not None
        return found

    async def to_the_beginning(self) -> None:
        """Paginate back to the start of the room."""
        self._reads_back = True
        while not await self.timeline.paginate_backwards(10):
            pass


def text_of(event: sdk.EventTimelineItem) -> str | None:
    """Return the text of a message."""
    message = message_of(event)
    return None if message is None else message.body


def message_of(event: sdk.EventTimelineItem) -> Any:
    """Return the content of a message, or None if it is redacted."""
    content = event.content
    if not content.is_msg_like() or not content.content.kind.is_message():
        return None
    return content.content.kind.content


def reactions_of(event: sdk.EventTimelineItem) -> dict[str, list[str]]:
    """Return the senders of reactions by key."""
    return {
        each.key: sorted(sender.sender_id for sender in each.senders)
        for each in event.content.content.reactions
    }


def id_of(event: sdk.EventTimelineItem) -> str:
    """Return the ID of an event."""
    return str(event.event_or_transaction_id.event_id)


@dataclass
class Person:
    """A user with a running client."""

    client: sdk.Client
    service: sdk.SyncService
    rooms: Following
    held: list[Any] = field(default_factory=list)
    """Handles of the engine whose subscriptions end when they are released."""

    @property
    def user_id(self) -> str:
        return str(self.client.user_id())

    def listed(self) -> dict[str, sdk.Room]:
        """The room list by room ID."""
        return {room.id(): room for room in list(self.rooms.items)}

    async def room(
        self, room_id: str, membership: sdk.Membership = sdk.Membership.JOINED
    ) -> sdk.Room:
        """Wait until the room list has the room with this membership."""

        def look() -> sdk.Room | None:
            room = self.listed().get(room_id)
            return room if room is not None and room.membership() == membership else None

        return await until(f"the room {room_id}", look)

    async def timeline(
        self, room_id: str, focus: sdk.TimelineFocus | None = None
    ) -> FollowedTimeline:
        """Open the timeline of a room."""
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


def synced_receipts(server: RealServer, somebody: Person, room_id: str) -> dict[str, Any]:
    """Return the public read receipts of a room in an initial sliding sync: user IDs by event."""
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
    """Return the published keys of the user's device with their signatures, or {} if there are
    none."""
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
    """Register an account over HTTP; the engine can only sign in."""
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
    """Run a client that stores its data in a folder and syncs; stop it at the end.

    `encrypts`: enable encryption as Element X does, with cross-signing from the start and key
    downloads from the backup.
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
