"""The calls of the client-server API that scenarios use."""

from dataclasses import dataclass
from itertools import count
from urllib.parse import quote, urlencode

import msgspec

from bench_parts.connection import Connection

V3 = "/_matrix/client/v3"
PASSWORD = "correct horse battery staple"
TEXT = (
    "The quick brown fox jumps over the lazy dog, "
    "and then writes a message about it of the usual length."
)
LAZY = '{"room":{"timeline":{"limit":20},"state":{"lazy_load_members":true}}}'
FULL = '{"room":{"timeline":{"limit":20}}}'
SLIDING = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
ROOM_LIST = {
    "conn_id": "room-list",
    "lists": {
        "all_rooms": {
            "ranges": [[0, 19]],
            "timeline_limit": 1,
            "required_state": [
                *(
                    [type, ""]
                    for type in (
                        "m.room.name",
                        "m.room.encryption",
                        "m.room.topic",
                        "m.room.avatar",
                    )
                ),
                *(
                    [type, ""]
                    for type in (
                        "m.room.canonical_alias",
                        "m.room.power_levels",
                        "m.room.join_rules",
                    )
                ),
                *(
                    [type, ""]
                    for type in ("m.room.tombstone", "m.room.create", "m.room.history_visibility")
                ),
                *(["m.room.member", key] for key in ("$LAZY", "$ME")),
                *(
                    [type, "*"]
                    for type in (
                        "m.space.parent",
                        "m.space.child",
                        "org.matrix.msc3401.call.member",
                    )
                ),
            ],
        }
    },
    "extensions": {
        "account_data": {"enabled": True},
        "receipts": {"enabled": True, "rooms": ["*"]},
        "typing": {"enabled": True},
    },
}


@dataclass(frozen=True, slots=True)
class User:
    """A logged-in user."""

    user_id: str
    token: str


class _Session(msgspec.Struct):
    user_id: str
    access_token: str


class _Room(msgspec.Struct):
    room_id: str


class _Sync(msgspec.Struct):
    next_batch: str


class _SlidingSync(msgspec.Struct):
    pos: str


class _SearchCount(msgspec.Struct):
    count: int


class _RoomEventsCount(msgspec.Struct):
    room_events: _SearchCount


class _Search(msgspec.Struct):
    search_categories: _RoomEventsCount


class _Page(msgspec.Struct):
    end: str | None = None


class _Hierarchy(msgspec.Struct):
    rooms: list[msgspec.Raw]
    next_batch: str | None = None


_session = msgspec.json.Decoder(_Session)
_room = msgspec.json.Decoder(_Room)
_sync = msgspec.json.Decoder(_Sync)
_sliding_sync = msgspec.json.Decoder(_SlidingSync)
_page = msgspec.json.Decoder(_Page)
_search = msgspec.json.Decoder(_Search)
_hierarchy = msgspec.json.Decoder(_Hierarchy)


class Client:
    """Sends requests on a given connection. Each method returns what the next call needs, or the
    response body."""

    def __init__(self) -> None:
        self._transactions = count(1)

    async def register(self, connection: Connection, name: str) -> User:
        body = {"username": name, "password": PASSWORD, "auth": {"type": "m.login.dummy"}}
        session = _session.decode(await connection.request("POST", f"{V3}/register", body))
        return User(session.user_id, session.access_token)

    async def login(self, connection: Connection, user_id: str) -> User:
        identifier = {"type": "m.id.user", "user": user_id}
        body = {"type": "m.login.password", "identifier": identifier, "password": PASSWORD}
        session = _session.decode(await connection.request("POST", f"{V3}/login", body))
        return User(session.user_id, session.access_token)

    async def create_room(
        self,
        connection: Connection,
        user: User,
        *,
        name: str,
        preset: str = "public_chat",
        type: str | None = None,
    ) -> str:
        body = {
            "preset": preset,
            "name": name,
            "creation_content": {} if type is None else {"type": type},
        }
        return _room.decode(
            await connection.request("POST", f"{V3}/createRoom", body, user.token)
        ).room_id

    async def join(self, connection: Connection, user: User, room_id: str) -> bytes:
        return await connection.request("POST", f"{V3}/join/{quote(room_id)}", {}, user.token)

    async def send(
        self, connection: Connection, user: User, room_id: str, text: str = TEXT
    ) -> bytes:
        path = f"{V3}/rooms/{quote(room_id)}/send/m.room.message/{next(self._transactions)}"
        return await connection.request(
            "PUT", path, {"msgtype": "m.text", "body": text}, user.token
        )

    async def sync(
        self,
        connection: Connection,
        user: User,
        since: str | None = None,
        *,
        timeout: int = 0,
        filter: str = LAZY,
    ) -> tuple[str, bytes]:
        """Return the next token and the response. `timeout` is in milliseconds."""
        query = {"timeout": str(timeout), "filter": filter, "set_presence": "offline"}
        if since is not None:
            query["since"] = since
        answer = await connection.request("GET", f"{V3}/sync?{urlencode(query)}", None, user.token)
        return _sync.decode(answer).next_batch, answer

    async def slide(self, connection: Connection, user: User, pos: str | None = None) -> str:
        """Send a sliding sync request for the first 20 rooms, like the room list of Element X.
        Return the next `pos`."""
        path = SLIDING if pos is None else f"{SLIDING}?pos={pos}"
        return _sliding_sync.decode(
            await connection.request("POST", path, ROOM_LIST, user.token)
        ).pos

    async def messages(
        self, connection: Connection, user: User, room_id: str, start: str | None
    ) -> str | None:
        """Fetch a page of 100 events, backwards. Return where the next page starts, or None at the
        end."""
        query = {"dir": "b", "limit": "100"}
        if start is not None:
            query["from"] = start
        path = f"{V3}/rooms/{quote(room_id)}/messages?{urlencode(query)}"
        return _page.decode(await connection.request("GET", path, None, user.token)).end

    async def search(self, connection: Connection, user: User, term: str) -> int:
        """Search like Element. Return the number of results."""
        criteria = {
            "search_term": term,
            "order_by": "recent",
            "filter": {"limit": 10},
            "event_context": {"before_limit": 1, "after_limit": 1, "include_profile": True},
        }
        body = {"search_categories": {"room_events": criteria}}
        answer = await connection.request("POST", f"{V3}/search", body, user.token)
        return _search.decode(answer).search_categories.room_events.count

    async def search_people(self, connection: Connection, user: User, term: str) -> bytes:
        body = {"search_term": term, "limit": 10}
        return await connection.request("POST", f"{V3}/user_directory/search", body, user.token)

    async def add_child(
        self, connection: Connection, user: User, space: str, room_id: str
    ) -> bytes:
        path = f"{V3}/rooms/{quote(space)}/state/m.space.child/{quote(room_id)}"
        return await connection.request("PUT", path, {"via": ["localhost"]}, user.token)

    async def hierarchy(
        self, connection: Connection, user: User, space: str, start: str | None, limit: int
    ) -> tuple[int, str | None]:
        """Fetch one page of a hierarchy. Return the number of rooms, and where the next page
        starts."""
        query = {"limit": str(limit)} | ({} if start is None else {"from": start})
        path = f"/_matrix/client/v1/rooms/{quote(space)}/hierarchy?{urlencode(query)}"
        page = _hierarchy.decode(await connection.request("GET", path, None, user.token))
        return len(page.rooms), page.next_batch

    async def read_room(self, connection: Connection, user: User, room_id: str, part: str) -> bytes:
        """`part` is `state`, `members` or `joined_members`."""
        return await connection.request(
            "GET", f"{V3}/rooms/{quote(room_id)}/{part}", None, user.token
        )
