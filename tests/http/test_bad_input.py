"""Any input to any endpoint gets a response within its timeout, and never a 500.

The requests are generated from the declarations: paths, query parameters and body fields of each
endpoint, mostly valid, some malicious. The random seed is the endpoint's name, so failures are
reproducible.
"""

# mypy: allow-untyped-calls

import gc
import hmac
import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints
from urllib.parse import quote
from weakref import ref

import msgspec
import pytest
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import provider

from federation.api.endpoint import QueryNames
from homeserver.api.endpoint import Auth, Endpoint, find_declaration
from homeserver.wiring.endpoints import SOURCES
from storage.engine.database import PostgresConfig, SQLiteConfig
from tests.conftest import run_coroutine
from tests.helpers.databases import PostgresTemplates, copy_sqlite, open_inline
from tests.helpers.http import Answer, Pending
from tests.helpers.server import TestServer

REQUESTS = 90
"""Requests to each endpoint on SQLite."""
REQUESTS_ON_POSTGRESQL = 25
"""PostgreSQL refuses other values, such as NUL or too large numbers. These are different
requests."""
MAX_WAIT = 3600.0
"""The time in seconds within which even a long poll with an absurd timeout must end."""

ENDPOINTS = sorted(
    {
        f"{value.__module__}.{value.__name__}": declaration
        for source in SOURCES
        for value in vars(source).values()
        if (declaration := find_declaration(value)) is not None
    }.items()
)

SECRET = "tea"
EXTRA_CONFIG = f"registration_shared_secret: {SECRET}\n"
DEEP = 3000
POISON = (
    *(
        "null",
        "true",
        "0",
        "-1",
        "1.5",
        "-0.0",
        "1e400",
        "1e-400",
        "9007199254740992",
        "9223372036854775808",
    ),
    *(
        "-9223372036854775809",
        "18446744073709551616",
        "1" * 400,
        '""',
        '" "',
        '"\\u0000"',
        '"a\\u0000b"',
        '"\\ud800"',
    ),
    *(
        '"\\udc00\\ud800"',
        '"\\uffff"',
        '"\U0001f600"',
        '"\U0010ffff"',
        f'"{"x" * 300}"',
        f'"{"y" * 20000}"',
    ),
    *(
        '"../../etc/passwd"',
        '"%s%n"',
        '"\'; DROP TABLE events; --"',
        '"@:"',
        '"@a:b:c"',
        '"!"',
        '"$"',
        '"#"',
    ),
    *(
        "[]",
        "{}",
        "[null]",
        "[[]]",
        '{"": ""}',
        '{"\\u0000": 1}',
        '{"\\ud800": 1}',
        '{"a": 1.5}',
        '["\\ud800"]',
    ),
    *('{"a": 1e400}', f"[{'1,' * 500}1]", "[" * 100 + "]" * 100, "[" * DEEP + "]" * DEEP),
    *(
        '"@a\\u0000b:example.org"',
        '"!a\\u0000b:example.org"',
        '"$a\\u0000"',
        '"mxc://example.org/a\\u0000b"',
        '"s1\\u0000"',
    ),
    *(
        '"t1_9223372036854775808"',
        '{"user_ids": ["\\u0000"]}',
        '{"rel_type": "m.thread", "event_id": "\\u0000"}',
    ),
    *(
        '{"a":' * 90 + "1" + "}" * 90,
        '{"a":' * DEEP + "1" + "}" * DEEP,
        '{"a": 1, "a": 2}',
        '"2020-01-01"',
        "NaN",
    ),
)
POISON_IN_PATHS = tuple(map(quote, POISON[:45]))
BODIES = (
    *(
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"1",
        b"{",
        b"}",
        b"{}{}",
        b"\xff\xfe",
        b'{"a": "\xff"}',
        b"\xef\xbb\xbf{}",
        b"\0",
    ),
    *(
        b"{'a': 1}",
        b'{"a": NaN}',
        b"[" * DEEP,
        b'{"a":' * DEEP,
        b"a=1&b=2",
        b"{}" + b" " * 30000,
        b"<xml/>",
    ),
)
WORDS = (
    *(
        "%00",
        "%ff",
        "%ED%A0%80",
        "%F0%9F%98%80",
        "%",
        "%zz",
        "%2F",
        "%2e%2e",
        "..",
        "a" * 256,
        "b" * 5000,
        "%20",
        "-1",
    ),
    *(
        "%0D%0AX:1",
        "1e5",
        "9223372036854775808",
        "9" * 30,
        "null",
        "%EF%BF%BF",
        "m.room.member",
        "%C3%A9",
        "s1_2",
        "%3F",
    ),
    *(
        "%40a%00%3Aexample.org",
        "%21a%00%3Aexample.org",
        "%24a%00",
        "s1_9223372036854775808",
        "t9223372036854775808_1",
    ),
    *(
        "%40",
        "%21",
        "%24unknown",
        "%40alice",
        "%21x%3Aexample.org",
        "%40nobody%3Aexample.org",
        "%23a%3Aexample.org",
        "0",
    ),
)


@dataclass(frozen=True)
class World:
    """A server with a room, and the tokens of its users."""

    server: TestServer
    tokens: tuple[str | None, ...]
    valid_values: dict[str, str]
    """Values that exist, by the name of the parameter or field."""


@pytest.fixture(scope="module")
def first_world(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path
) -> tuple[World, Path]:
    """A world and its closed database, of which each endpoint gets a copy."""
    folder = tmp_path_factory.mktemp("world")
    config = copy_sqlite(sqlite_template, folder)
    return make_world(folder, config), Path(config.path)


@pytest.fixture
def world(first_world: tuple[World, Path], tmp_path: Path) -> Iterator[World]:
    first, database = first_world
    yield from copy_world(first, tmp_path, copy_sqlite(database, tmp_path))


@pytest.fixture(scope="module")
def first_world_on_postgresql(
    tmp_path_factory: pytest.TempPathFactory, postgres_templates: PostgresTemplates
) -> Iterator[tuple[World, PostgresConfig]]:
    config = postgres_templates.create()
    yield make_world(tmp_path_factory.mktemp("world"), config), config
    postgres_templates.drop(config)


@pytest.fixture
def world_on_postgresql(
    first_world_on_postgresql: tuple[World, PostgresConfig],
    tmp_path: Path,
    postgres_templates: PostgresTemplates,
) -> Iterator[World]:
    first, database = first_world_on_postgresql
    config = postgres_templates.create(like=database)
    yield from copy_world(first, tmp_path, config)
    postgres_templates.drop(config)


def copy_world(
    first: World, folder: Path, config: SQLiteConfig | PostgresConfig
) -> Iterator[World]:
    """Yield the same world on a copy of its database."""
    database = open_inline(config)
    yield replace(first, server=TestServer(folder, database, EXTRA_CONFIG, seed=2))
    run_coroutine(database.close(), None)


def make_world(folder: Path, config: SQLiteConfig | PostgresConfig) -> World:
    database = open_inline(config)
    server = TestServer(folder, database, EXTRA_CONFIG)
    alice, bob, root = server.register("alice"), server.register("bob"), register_admin(server)
    guest = server.post("/_matrix/client/v3/register?kind=guest", {}).json
    room = alice.post(
        "/_matrix/client/v3/createRoom", {"preset": "public_chat", "room_alias_name": "tea"}
    ).json
    path = f"/_matrix/client/v3/rooms/{quote(room['room_id'])}"
    assert bob.post(path + "/join").status == 200
    event = alice.put(path + "/send/m.room.message/t0", {"msgtype": "m.text", "body": "tea?"}).json
    since = alice.get("/_matrix/client/v3/sync").json["next_batch"]
    valid_values = {
        "user_id": alice.user_id,
        "room_id": room["room_id"],
        "room_id_or_alias": room["room_id"],
        "room_alias": "#tea:example.org",
        "event_id": event["event_id"],
        "device_id": alice.device_id,
        "event_type": "m.room.topic",
        "since": since,
        "from": since,
        "to": since,
        "dir": "b",
        "kind": "user",
        "username": "carol",
        "password": "wonderland",
        "type": "m.login.password",
    }
    run_coroutine(database.close(), None)
    return World(
        server,
        (alice.token, alice.token, bob.token, guest["access_token"], root, None, "x", "\xe9"),
        valid_values,
    )


def register_admin(server: TestServer) -> str:
    """Return the token of an administrator."""
    nonce = server.get("/_synapse/admin/v1/register").json["nonce"]
    mac = hmac.new(
        SECRET.encode(), f"{nonce}\0root\0wonderland\0admin".encode(), "sha1"
    ).hexdigest()
    body = {"nonce": nonce, "username": "root", "password": "wonderland", "admin": True, "mac": mac}
    return str(server.post("/_synapse/admin/v1/register", body).json["access_token"])


class RequestMaker:
    """Generates requests to one endpoint."""

    def __init__(self, declaration: Endpoint, world: World, random: Random) -> None:
        self.declaration = declaration
        self.world = world
        self.random = random
        hints = get_type_hints(declaration.handler, include_extras=True)
        signature = inspect.signature(declaration.handler)
        self.body: Any = hints.get("body")
        self.query = [
            (name, hints[name])
            for name, parameter in signature.parameters.items()
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY
            and name != "body"
            and not any(f"{{{name}}}" in path for path in declaration.paths)
        ]

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def path(self) -> str:
        segments = []
        for segment in self.random.choice(self.declaration.paths).split("/"):
            if not segment.startswith("{"):
                segments.append(segment)
            elif self.chance(0.12):
                segments.append(self.random.choice(WORDS))
            else:
                segments.append(quote(self.world.valid_values.get(segment[1:-1], "x"), safe=""))
        path = "/".join(segments)
        fields = []
        for name, hint in self.query:
            for _ in range(self.random.choice((0, 1, 1, 2))):
                fields.append(f"{self.wire_name(name, hint)}={self.word(name, hint)}")
        if self.chance(0.1):
            fields.append(
                self.random.choice(
                    ("%", "=", "&&", "a=%00", "a=%ff", "x=1&x=2", "access_token=x", "é", "q" * 3000)
                )
            )
        return path + "?" + "&".join(fields) if fields else path

    def word(self, name: str, hint: Any) -> str:
        """Return a value of a query parameter."""
        if self.chance(0.15):
            return self.random.choice((*WORDS, self.random.choice(POISON_IN_PATHS)))
        known = self.world.valid_values.get(name.rstrip("_"))
        if known is not None:
            return quote(known)
        hint = plain(hint)
        if get_origin(hint) is Literal:
            return quote(str(self.random.choice(get_args(hint))))
        return {bool: "true", int: "10"}.get(hint, "x")

    @staticmethod
    def wire_name(name: str, hint: Any) -> str:
        extras = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        given = [each.names[0] for each in extras if isinstance(each, QueryNames)]
        return given[0] if given else name.rstrip("_")

    def payload(self) -> bytes | None:
        if self.body is None:
            return None if self.chance(0.5) else self.random.choice(BODIES)
        if self.chance(0.12):
            return self.random.choice(BODIES)
        return self.json_of(self.body, 0).encode("utf-8", "surrogatepass")

    def json_of(self, hint: Any, depth: int) -> str:
        """Return JSON of this type, with some malicious values."""
        hint = plain(hint)
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            fields = [
                f"{json.dumps(field.encode_name)}: "
                f"{self.value(field.encode_name, field.type, depth)}"
                for field in fields_of(hint)
                if self.chance(0.75) or field.required
            ]
            if self.chance(0.1):
                fields.append(f'"org.example.more": {self.random.choice(POISON)}')
            return "{" + ", ".join(fields) + "}"
        if hint is dict or get_origin(hint) is dict or hint is msgspec.Raw:
            names = (
                "body",
                "msgtype",
                "m.relates_to",
                "m.mentions",
                "membership",
                "users",
                "name",
                "timeline",
                "type",
            )
            count = self.random.choice((0, 1, 2, 3))
            return (
                "{"
                + ", ".join(
                    f'"{self.random.choice(names)}": {self.random.choice(POISON)}'
                    for _ in range(count)
                )
                + "}"
            )
        return self.random.choice(POISON)

    def value(self, name: str, hint: Any, depth: int) -> str:
        if self.chance(0.15) or depth > 4:
            return self.random.choice(POISON)
        known = self.world.valid_values.get(name)
        if known is not None:
            return json.dumps(known)
        hint = plain(hint)
        if hint is bool:
            return "true"
        if hint is int:
            return "1000"
        if hint is str:
            return '"x"'
        if get_origin(hint) in (list, tuple, set, frozenset):
            inner = get_args(hint)[0]
            return (
                "["
                + ", ".join(
                    self.value(name[:-1], inner, depth + 1)
                    for _ in range(self.random.choice((0, 1, 3)))
                )
                + "]"
            )
        if get_origin(hint) is Literal:
            return json.dumps(self.random.choice(get_args(hint)))
        return self.json_of(hint, depth + 1)


fields_of = cache(msgspec.structs.fields)


def plain(hint: Any) -> Any:
    """Return a type without annotations and None."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) in (Union, UnionType):
        hint = next(each for each in get_args(hint) if each not in (type(None), msgspec.UnsetType))
    return getattr(hint, "__supertype__", hint)


@pytest.fixture
def bugs() -> Iterator[list[str]]:
    """The tracebacks of all logged failures."""
    found: list[str] = []

    @provider(ILogObserver)
    def observe(event: LogEvent) -> None:
        if "log_failure" in event and not is_of_collected_server(event["log_failure"]):
            found.append(event["log_failure"].getTraceback())

    globalLogPublisher.addObserver(observe)
    yield found
    globalLogPublisher.removeObserver(observe)


def is_of_collected_server(failure: Failure) -> bool:
    """Return whether the failure is of the server of an earlier test.

    The garbage collector closes the waiting coroutines of such a server in any order. One that ends
    may release another one that is closed already, and Twisted cannot resume that. If our own code
    awaited a coroutine twice, it would be among the frames.
    """
    return str(failure.value) == "cannot reuse already awaited coroutine" and all(
        "/twisted/" in file for _, file, *_ in failure.frames
    )


def ask(world: World, method: str, path: str, token: str | None, body: bytes | None) -> Answer:
    return wait_for(world, world.server.client.start(method, path, token=token, body=body)).answer


def wait_for(world: World, pending: Pending) -> Pending:
    waited = 0.0
    while not pending.done and waited < MAX_WAIT:
        world.server.clock.advance(10)
        waited += 10
    return pending


def check(response: Answer, request: tuple[object, ...], bugs: list[str]) -> None:
    # 502: the request was valid, but the other server is not reachable
    assert response.status < 500 or response.status == 502, (
        request,
        response.body,
        "\n".join(bugs),
    )
    assert not bugs, (request, response.body, "\n".join(bugs))
    if response.headers.get("content-type", "").startswith("application/json"):
        body = json.loads(response.body.decode())
        if response.status >= 400 and "flows" not in body:
            assert body["errcode"].startswith("M_"), request
            assert isinstance(body["error"], str), request
    elif response.headers.get("content-type", "").startswith("text/html"):
        # a page that explains the error
        assert response.body.startswith(b"<!DOCTYPE html>"), request
    else:
        assert response.status < 400, request


each_endpoint = pytest.mark.parametrize(
    ("name", "declaration"),
    ENDPOINTS,
    ids=[name.removeprefix("homeserver.") for name, _ in ENDPOINTS],
)


@each_endpoint
def test_bad_input_gets_a_response(
    name: str, declaration: Endpoint, world: World, bugs: list[str]
) -> None:
    maker = RequestMaker(declaration, world, Random(name))
    seen = check_all(maker, bugs, REQUESTS)
    if declaration.auth is Auth.SERVER:
        assert 401 in seen, "unsigned requests are refused"
    elif "{" in declaration.paths[0] or maker.body is not None:
        assert seen - {401, 404, 405, 429}, "every request was refused before its input was parsed"


@each_endpoint
def test_bad_input_gets_a_response_on_postgresql(
    name: str, declaration: Endpoint, world_on_postgresql: World, bugs: list[str]
) -> None:
    check_all(
        RequestMaker(declaration, world_on_postgresql, Random(f"{name} on PostgreSQL")),
        bugs,
        REQUESTS_ON_POSTGRESQL,
    )


def check_all(maker: RequestMaker, bugs: list[str], count: int) -> set[int]:
    """Send this many requests. Return the statuses of the responses."""
    declaration, world, random = maker.declaration, maker.world, maker.random
    seen = set()
    for _ in range(count):
        method = (
            declaration.method
            if maker.chance(0.95)
            else random.choice(("GET", "PUT", "POST", "DELETE", "PATCH", "X"))
        )
        token = random.choice(world.tokens) if declaration.auth is not Auth.NONE else None
        request = (method, maker.path(), token, maker.payload())
        response = ask(world, *request)
        check(response, request, bugs)
        seen.add(response.status)
    return seen


UNREACHABLE = (
    *(
        "/_matrix/client/v3/profile/@x:else.where",
        "/_matrix/client/v3/directory/room/%23x:else.where",
    ),
    *(
        "/_matrix/client/v3/publicRooms?server=else.where",
        "/_matrix/client/v1/room_summary/%23x:else.where",
    ),
    *(
        "/_matrix/client/v1/media/download/else.where/x",
        "/_matrix/client/v1/rooms/!x:else.where/hierarchy",
    ),
)
"""Requests to a server that is not reachable, each sent twice to cover cached failures."""


def test_requests_are_released_from_memory(world: World) -> None:
    random = Random("memory")
    alice = world.tokens[0]
    requests: list[tuple[str, str, str | None, bytes | None]] = []
    requests += [("GET", path, alice, None) for path in (*UNREACHABLE, *UNREACHABLE)]
    for _, declaration in ENDPOINTS:
        if not any("logout" in path or "deactivate" in path for path in declaration.paths):
            maker = RequestMaker(declaration, world, random)
            requests += [
                (declaration.method, maker.path(), alice, maker.payload()) for _ in range(3)
            ]
    channels = []
    for method, path, token, body in requests:
        pending = wait_for(world, world.server.client.start(method, path, token=token, body=body))
        pending.disconnect()
        channels.append((ref(pending.connection.channel), f"{method} {path[:200]}"))
    del pending
    gc.collect()
    assert [path for channel, path in channels if channel() is not None] == []
