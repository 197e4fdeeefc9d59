"""The cost of checking an access token, and how soon a revoked token is refused."""

from collections.abc import Coroutine, Sequence
from math import inf
from pathlib import Path
from random import Random
from time import process_time
from typing import Any

import pytest
from twisted.logger import capturedLogs, formatEvent

from federation.api.request import RequestContext
from federation.protocol.errors import MatrixError
from homeserver.services.login import access_tokens
from homeserver.services.login.access_tokens import AccessTokens
from homeserver.services.login.sessions import TokenLifetimes
from homeserver.services.tokens.secret_tokens import hash_token, is_damaged
from storage.engine.database import Database, DatabaseUnavailable, PostgresConfig, SQLiteConfig
from storage.login.access_tokens import AccessTokenRow, TokenStore
from tests.helpers.accounts import AccountsServer, User
from tests.helpers.databases import QueryCounter, open_inline

CONTEXT = RequestContext("r", "GET", b"/", "10.0.0.1", {b"user-agent": b"test"})


@pytest.fixture
def server(database_config: SQLiteConfig | PostgresConfig, counter: QueryCounter) -> AccountsServer:
    return AccountsServer(open_inline(database_config, counter))


def test_a_cached_token_costs_no_query(server: AccountsServer, counter: QueryCounter) -> None:
    alice = server.register()
    counter.clear()
    assert alice.is_signed_in()
    assert counter.queries == {"get_access_token": 1}
    counter.clear()
    for _ in range(5):
        assert alice.is_signed_in()
    assert not counter.queries


async def test_a_cached_token_costs_microseconds(server: AccountsServer) -> None:
    alice = server.register()
    check = server.access_tokens.get_requester
    await check(alice.token, CONTEXT)
    rounds = 5000
    before = process_time()
    for _ in range(rounds):
        await check(alice.token, CONTEXT)
    # It takes about 3 µs; the bound leaves room for a slow and busy machine.
    assert (process_time() - before) / rounds < 50e-6


def test_damaged_tokens_cost_no_query(server: AccountsServer, counter: QueryCounter) -> None:
    alice = server.register()
    counter.clear()
    other = "A" if alice.token[10] != "A" else "B"
    for damaged in (
        alice.token[:-1],
        alice.token + "x",
        alice.token[:10] + other + alice.token[11:],
        "mha_",
    ):
        assert server.request("GET", "account/whoami", token=damaged).errcode == "M_UNKNOWN_TOKEN"
    assert not counter.queries
    assert not is_damaged(alice.token)
    assert not is_damaged("syt_from_elsewhere")


def test_small_operations_have_fixed_query_counts(
    server: AccountsServer, counter: QueryCounter
) -> None:
    alice = server.register()
    assert alice.is_signed_in()
    for path, body, reads, writes in (
        ("user/{me}/account_data/m.direct", {}, 0, 1),
        ("profile/{me}/displayname", {"displayname": "Alice"}, 0, 1),
        ("user/{me}/rooms/!r:example.org/tags/x", {}, 0, 1),
    ):
        counter.clear()
        assert alice.put(path, body).status == 200
        assert (counter.reads.total(), counter.writes.total()) == (reads, writes), path
    counter.clear()
    server.login()
    assert (counter.reads.total(), counter.writes.total()) == (1, 1)


def test_the_database_stores_only_hashes_of_tokens(sqlite: SQLiteConfig) -> None:
    alice = AccountsServer(open_inline(sqlite)).register()
    path = Path(sqlite.path)
    written = b"".join(file.read_bytes() for file in path.parent.glob(path.name + "*"))
    assert alice.id.encode() in written
    assert alice.token.encode() not in written
    assert hash_token(alice.token) in written


def test_the_cache_is_bounded(server: AccountsServer, counter: QueryCounter) -> None:
    users = [server.register(name) for name in ("alice", "bob", "carol")]
    bounded = AccessTokens(
        clock=server.clock,
        database=server.database,
        tokens=server.token_store,
        accounts=server.account_store,
        streams=server.database.streams,
        last_seen=server.last_seen,
        max_cached=2,
    )
    counter.clear()

    async def ask(user: User) -> None:
        assert await bounded.get_requester(user.token, CONTEXT) is not None

    for user in (*users, users[2], users[1]):
        run_synchronously(ask(user))
    assert counter.queries["get_access_token"] == 3
    run_synchronously(ask(users[0]))
    assert counter.queries["get_access_token"] == 4


def run_synchronously(coroutine: Coroutine[None, None, None]) -> None:
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError("the coroutine waits")


def test_more_tokens_than_the_raw_token_cache_holds_stay_cached(
    server: AccountsServer, counter: QueryCounter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_tokens, "MAX_RAW_TOKENS", 2)
    users = [server.register(name) for name in ("alice", "bob", "carol")]
    assert all(user.is_signed_in() for user in users)
    counter.clear()
    for user in (*users, *users, users[2], users[0]):
        assert server.request("GET", "account/whoami", token=user.token).json["user_id"] == user.id
    assert not counter.queries
    run_synchronously(server.sessions.do_log_out_everywhere(users[1].id))
    assert [user.is_signed_in() for user in users] == [True, False, True]


@pytest.mark.parametrize("uses", [1, 2])
def test_a_token_that_was_read_again_is_refused_once_revoked(
    server: AccountsServer, counter: QueryCounter, uses: int
) -> None:
    """The cache entry from before the second read is invalid too."""
    alice = server.register()
    for _ in range(2):
        assert alice.is_signed_in()
    server.access_tokens.trust_until(0.0)
    counter.clear()
    for _ in range(uses):
        assert alice.is_signed_in()
    assert counter.queries == {"get_access_token": uses}
    server.access_tokens.trust_until(inf)
    run_synchronously(server.sessions.do_log_out_everywhere(alice.id))
    assert not alice.is_signed_in()


@pytest.mark.parametrize("seed", range(6))
def test_the_cache_always_agrees_with_the_database(
    sqlite: SQLiteConfig, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """With any cache size, trusted or not."""
    random = Random(seed)
    monkeypatch.setattr(access_tokens, "MAX_RAW_TOKENS", random.choice([1, 2, 3, 100]))
    server = AccountsServer(
        open_inline(sqlite), lifetimes=TokenLifetimes(refreshable_access_token=60_000)
    )

    def make(most_remembered: int) -> AccessTokens:
        return AccessTokens(
            clock=server.clock,
            database=server.database,
            tokens=server.token_store,
            accounts=server.account_store,
            streams=server.database.streams,
            last_seen=server.last_seen,
            max_cached=most_remembered,
        )

    def find_requester(tokens: AccessTokens, token: str) -> object:
        found: list[object] = []

        async def ask() -> None:
            try:
                found.append(await tokens.get_requester(token, CONTEXT))
            except MatrixError as error:
                found.append((error.errcode, error.fields))

        run_synchronously(ask())
        return found[0]

    caches = [server.access_tokens, make(1), make(2), make(100)]
    known = ["unknown", *(server.register(name).token for name in ("alice", "bob"))]
    refresh_tokens: list[str] = []
    for _ in range(150):
        match random.randrange(12):
            case 0 | 1:
                session = server.login(refresh_token=True).json
                known.append(session["access_token"])
                refresh_tokens.append(session["refresh_token"])
            case 2 if refresh_tokens:
                refreshed = server.request(
                    "POST", "refresh", {"refresh_token": random.choice(refresh_tokens)}
                )
                if refreshed.status == 200:
                    known.append(refreshed.json["access_token"])
                    refresh_tokens.append(refreshed.json["refresh_token"])
            case 3:
                path = random.choice(["logout", "logout", "logout/all"])
                server.request("POST", path, {}, token=random.choice(known))
            case 4:
                server.clock.advance(random.choice([1, 30, 61]))
            case 5:
                random.choice(caches).trust_until(random.choice([0.0, inf]))
        tokens, token = random.choice(caches), random.choice(known)
        cached = tokens.get_cached(token, CONTEXT.client_ip, CONTEXT.headers)
        requester = find_requester(tokens, token)
        assert requester == find_requester(make(100), token)
        assert cached in (None, requester)


class SlowTokenStore(TokenStore):
    """Ends all sessions of the user after the database has answered its first read."""

    def __init__(self, server: AccountsServer, user: User) -> None:
        super().__init__(server.database)
        self._server = server
        self._user: User | None = user

    async def get_access_token(
        self, token_hash: bytes, policies: Sequence[tuple[str, str]] = ()
    ) -> AccessTokenRow | None:
        row = await super().get_access_token(token_hash, policies)
        user, self._user = self._user, None
        if user is not None:
            await self._server.sessions.do_log_out_everywhere(user.id)
        return row


async def test_a_token_read_while_it_is_revoked_is_not_cached(server: AccountsServer) -> None:
    alice = server.register()
    tokens = AccessTokens(
        clock=server.clock,
        database=server.database,
        tokens=SlowTokenStore(server, alice),
        accounts=server.account_store,
        streams=server.database.streams,
        last_seen=server.last_seen,
    )
    assert await tokens.get_requester(alice.token, CONTEXT) is not None
    assert await tokens.get_requester(alice.token, CONTEXT) is None


async def test_a_refreshed_token_revoked_at_its_first_use_is_not_cached(
    server: AccountsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = server.register()
    first = server.login(refresh_token=True).json
    token = server.request("POST", "refresh", {"refresh_token": first["refresh_token"]}).json[
        "access_token"
    ]
    write = Database.write

    async def write_and_revoke(self: Database, name: str, *args: Any) -> Any:
        result = await write(self, name, *args)
        if name == "end_replaced_token_pair":
            monkeypatch.undo()
            await server.sessions.do_log_out_everywhere(alice.id)
        return result

    monkeypatch.setattr(Database, "write", write_and_revoke)
    server.request("GET", "account/whoami", token=token)
    assert Database.write is write  # it was used
    assert server.request("GET", "account/whoami", token=token).status == 401


async def test_a_revoked_token_is_refused_on_every_node(
    database_config: SQLiteConfig | PostgresConfig,
) -> None:
    here, there = (AccountsServer(open_inline(database_config)) for _ in range(2))
    alice, bob = here.register("alice"), here.register("bob")
    await there.database.catch_up()
    for user in (alice, bob):
        assert there.request("GET", "account/whoami", token=user.token).status == 200
    assert alice.post("logout/all", {}).status == 200
    await there.database.catch_up()
    assert there.request("GET", "account/whoami", token=alice.token).errcode == "M_UNKNOWN_TOKEN"
    assert there.request("GET", "account/whoami", token=bob.token).status == 200


async def test_a_refreshed_session_is_cached_from_its_second_request_on(
    database_config: SQLiteConfig | PostgresConfig, counter: QueryCounter
) -> None:
    server = AccountsServer(
        open_inline(database_config, counter),
        lifetimes=TokenLifetimes(refreshable_access_token=60_000),
    )
    server.register()
    first = server.login(refresh_token=True).json
    token = server.request("POST", "refresh", {"refresh_token": first["refresh_token"]}).json[
        "access_token"
    ]
    for _ in range(2):
        assert server.request("GET", "account/whoami", token=token).status == 200
    counter.clear()
    assert server.request("GET", "account/whoami", token=token).status == 200
    assert not counter.queries


def test_sightings_are_written_in_batches(server: AccountsServer, counter: QueryCounter) -> None:
    users = [server.register(f"user{number}") for number in range(5)]
    server.last_seen.start()
    for _ in range(10):
        assert all(user.is_signed_in() for user in users)
    counter.clear()
    server.clock.advance(30)
    server.clock.advance(30)
    assert counter.writes == {"set_sightings": 1}


def test_a_full_disk_logs_one_line(server: AccountsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: object) -> None:
        raise DatabaseUnavailable("the disk is full\n")

    monkeypatch.setattr(server.device_store, "set_last_seen", refuse)
    server.last_seen.start()
    alice = server.register()
    assert alice.is_signed_in()
    with capturedLogs() as events:
        server.clock.advance(30)
    assert [formatEvent(each) for each in events] == [
        "could not write when devices were last seen: the disk is full"
    ]
    assert "log_failure" not in events[0]
    monkeypatch.undo()
    server.clock.advance(120)
    assert alice.is_signed_in()
    server.clock.advance(30)
    assert alice.get(f"devices/{alice.device_id}").json["last_seen_ip"]
