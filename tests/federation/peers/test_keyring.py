"""Other servers' keys: when they are fetched, from whom, what is accepted, and bounds of the
work that a malicious server causes."""

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred

from federation.peers.client import FederationClient
from federation.peers.federation_policy import FederationPolicy, make_rules
from federation.peers.identity import ServerIdentity
from federation.peers.keyring import (
    MAX_CONCURRENT_UNAUTHENTICATED,
    MAX_WAITING_UNAUTHENTICATED,
    REFETCH_PAUSE_MS,
    RETRIES,
    Keyring,
    Notary,
)
from federation.peers.server_keys import ServerKeyClient
from federation.peers.wire import WireRequest, WireResponse
from federation.protocol.errors import LimitExceeded, RemoteError
from federation.protocol.event_signing import build_event
from federation.protocol.events import Event, parse_event
from federation.protocol.ids import KeyID, RoomID, ServerName, UserID
from federation.protocol.key_documents import LONGEST_VALID_MS, VerifyKey
from federation.protocol.room_versions import ROOM_VERSIONS
from federation.protocol.signing import SigningKey, encode_base64, sign_json
from storage.engine.database import Database
from storage.federation.server_keys import MAX_STORED_KEYS, ServerKeyStore

DAY = 24 * 3600 * 1000
START = 1_700_000_000_000
HERE, NORTH, SOUTH, NOTARY = map(
    ServerName, ("here.example", "north.example", "south.example", "notary.example")
)


def key(name: str) -> SigningKey:
    return SigningKey(name, name.encode().ljust(32)[:32])


A, B, N = key("a"), key("b"), key("n")


def document(
    server: str,
    *keys: SigningKey,
    until: int = START + DAY,
    old: Mapping[SigningKey, int] | None = None,
    signer: SigningKey | None = None,
) -> dict[str, Any]:
    """Return the key document of a server."""
    said = {
        "server_name": server,
        "verify_keys": {each.key_id: {"key": encode_base64(each.public_key)} for each in keys},
        "old_verify_keys": {
            each.key_id: {"key": encode_base64(each.public_key), "expired_ts": at}
            for each, at in (old or {}).items()
        },
        "valid_until_ts": until,
    }
    return sign_json(said, server, signer or keys[0])


class World:
    """The other servers, as the wire finds them."""

    def __init__(self) -> None:
        self.now = START
        self.says: dict[str, Any] = {}
        """The key document of each server. A server without one does not answer."""
        self.notary_says: list[Any] = []
        self.busy: dict[str, int] = {}
        """Servers that say 429, and after how many seconds to come again."""
        self.log: list[tuple[str, str]] = []
        self.held: list[Deferred[None]] | None = None

    async def exchange(self, destination: ServerName, request: WireRequest) -> WireResponse:
        self.log.append((destination, request.uri))
        if self.held is not None:
            self.held.append(Deferred())
            await self.held[-1]
        if destination in self.busy:
            return WireResponse(429, {"retry-after": str(self.busy[destination])}, b"{}")
        if request.uri == "/_matrix/key/v2/query":
            self.question = msgspec.json.decode(request.body)["server_keys"]
            return WireResponse(200, {}, msgspec.json.encode({"server_keys": self.notary_says}))
        if destination not in self.says:
            raise RemoteError(destination, "nobody is there", retryable=True)
        return WireResponse(200, {}, msgspec.json.encode(self.says[destination]))

    def count(self, server: str) -> int:
        return sum(destination == server for destination, _ in self.log)


def make(
    world: World, database: Database, *notaries: Notary, allowed: list[str] | None = None
) -> Keyring:
    identity = ServerIdentity(HERE, key("here"))
    requests = FederationClient(
        wire=world,
        identity=identity,
        policy=FederationPolicy(
            own=HERE, rules=make_rules(allowed), seconds=lambda: world.now / 1000
        ),
        now_ms=lambda: world.now,
    )
    old = {B.key_id: VerifyKey(B.public_key, START - DAY)}
    return Keyring(
        remote=ServerKeyClient(requests),
        store=ServerKeyStore(database),
        identity=identity,
        now_ms=lambda: world.now,
        notaries=notaries,
        old_keys=old,
    )


def event(
    signer: SigningKey, *, at: int = START, version: str = "11", server: ServerName = NORTH
) -> Event:
    made = build_event(
        ROOM_VERSIONS[version],
        server,
        signer,
        room_id=RoomID("!room:north.example"),
        type="m.room.message",
        sender=UserID(f"@user:{server}"),
        content={"body": "salom"},
        prev_events=[],
        auth_events=[],
        depth=5,
        origin_server_ts=at,
    )
    return parse_event(ROOM_VERSIONS[version], made.pdu)


# ---- asking servers themselves


async def test_keys_are_fetched_once_and_stored_over_a_restart(database: Database) -> None:
    world = World()
    world.says[NORTH] = document(NORTH, A, B)
    keyring = make(world, database)
    assert await keyring.get_keys(NORTH, [A.key_id], world.now) == {A.key_id: A.public_key}
    assert await keyring.get_keys(NORTH, [B.key_id], world.now) == {B.key_id: B.public_key}
    assert await make(world, database).get_keys(NORTH, [A.key_id], world.now) == {
        A.key_id: A.public_key
    }
    assert world.log == [(NORTH, "/_matrix/key/v2/server")]


async def test_concurrent_callers_cause_one_request(sqlite_database: Database) -> None:
    world = World()
    world.says[NORTH] = document(NORTH, A)
    world.held = []
    keyring = make(world, sqlite_database)
    waiting = [
        Deferred.fromCoroutine(keyring.get_keys(NORTH, [A.key_id], START)) for _ in range(50)
    ]
    waiting[7].addErrback(lambda _: None)
    waiting[7].cancel()
    assert len(world.held) == 1
    world.held[0].callback(None)
    del waiting[7]
    assert [await each for each in waiting] == [{A.key_id: A.public_key}] * 49


async def test_keys_are_renewed_in_the_second_half_of_their_validity_without_a_wait(
    sqlite_database: Database,
) -> None:
    world = World()
    world.says[NORTH] = document(NORTH, A)
    keyring = make(world, sqlite_database)
    await keyring.get_keys(NORTH, [A.key_id], world.now)
    world.now += DAY // 2 - 1
    await keyring.get_keys(NORTH, [A.key_id], world.now)
    assert len(world.log) == 1
    world.now += 1
    world.says[NORTH] = document(NORTH, A, until=world.now + DAY)
    world.held = []
    assert await keyring.get_keys(NORTH, [A.key_id], world.now)
    assert len(world.log) == 2
    world.held.pop().callback(None)
    world.now += DAY // 2 - 1
    await keyring.get_keys(NORTH, [A.key_id], world.now)
    assert len(world.log) == 2


async def test_an_expired_key_is_not_used_until_it_is_renewed(
    sqlite_database: Database,
) -> None:
    world = World()
    world.says[NORTH] = document(NORTH, A)
    keyring = make(world, sqlite_database)
    await keyring.get_keys(NORTH, [A.key_id], world.now)
    world.now += DAY + 1
    del world.says[NORTH]
    assert await keyring.get_keys(NORTH, [A.key_id], world.now) == {}
    world.now += RETRIES.max_ms
    world.says[NORTH] = document(NORTH, A, until=world.now + DAY)
    assert await keyring.get_keys(NORTH, [A.key_id], world.now) == {A.key_id: A.public_key}


async def test_an_unresponsive_server_is_queried_less_and_less_often(
    sqlite_database: Database,
) -> None:
    world = World()
    keyring = make(world, sqlite_database)
    for _ in range(3600):
        assert await keyring.get_keys(NORTH, [A.key_id], world.now) == {}
        world.now += 1000
    assert 12 <= len(world.log) <= 20


async def test_invented_key_ids_cause_few_requests(sqlite_database: Database) -> None:
    world = World()
    world.says[NORTH] = document(NORTH, A, until=START + 6 * DAY)
    keyring = make(world, sqlite_database)
    for number in range(3600):
        assert await keyring.get_keys(NORTH, [KeyID(f"ed25519:made_up_{number}")], world.now) == {}
        world.now += 1000
    assert len(world.log) <= 20
    assert await keyring.get_keys(NORTH, [A.key_id], world.now) == {A.key_id: A.public_key}


async def test_a_new_key_in_each_request_causes_few_fetches_and_stored_keys(
    sqlite_database: Database,
) -> None:
    world = World()
    keyring = make(world, sqlite_database)
    proved = 0
    for number in range(600):
        asked = key(f"k{number}")
        others = {
            f"ed25519:v{number}_{each}": {"key": encode_base64(asked.public_key)}
            for each in range(99)
        }
        said = document(NORTH, asked, until=world.now + DAY)
        said["verify_keys"] |= others
        said["old_verify_keys"] = {
            f"{each}_old": entry | {"expired_ts": world.now} for each, entry in others.items()
        }
        world.says[NORTH] = sign_json({**said, "signatures": {}}, NORTH, asked)
        proved += bool(
            await keyring.get_keys_of_unauthenticated(NORTH, [asked.key_id], world.now, "a")
        )
        world.now += 100
    assert 1 <= proved <= len(world.log) <= 60_000 // REFETCH_PAUSE_MS
    assert (await keyring.get_keys(NORTH, [asked.key_id], world.now)) == {
        asked.key_id: asked.public_key
    }
    assert (
        len((await ServerKeyStore(sqlite_database).get_keys([NORTH]))[NORTH].keys)
        == MAX_STORED_KEYS
    )


async def test_a_key_of_short_validity_is_not_fetched_for_each_request(
    sqlite_database: Database,
) -> None:
    world = World()
    keyring = make(world, sqlite_database)
    for _ in range(600):
        world.says[NORTH] = document(NORTH, A, until=world.now + 1)
        await keyring.get_keys_of_unauthenticated(NORTH, [A.key_id], world.now, "a")
        world.now += 100
    assert len(world.log) <= 60_000 // REFETCH_PAUSE_MS


async def test_invented_servers_do_not_delay_the_requests_of_others(
    sqlite_database: Database,
) -> None:
    """Anybody may name servers in requests, as many as they like, and let each of them take its
    time."""
    world = World()
    world.says = {NORTH: document(NORTH, A), SOUTH: document(SOUTH, B, until=START + 1)}
    keyring = make(world, sqlite_database)
    assert await keyring.get_keys_of_unauthenticated(SOUTH, [B.key_id], START, "a")
    world.now += REFETCH_PAUSE_MS
    world.says[SOUTH] = document(SOUTH, B)
    world.held = []
    crowd = [
        Deferred.fromCoroutine(
            keyring.get_keys_of_unauthenticated(
                ServerName(f"x{number}.example"), [A.key_id], world.now, f"a{number}"
            )
        )
        for number in range(MAX_WAITING_UNAUTHENTICATED)
    ]

    with pytest.raises(LimitExceeded):
        await keyring.get_keys_of_unauthenticated(
            ServerName("y.example"), [A.key_id], world.now, "b"
        )
    assert len(world.held) == MAX_CONCURRENT_UNAUTHENTICATED
    assert not await keyring.renew(ServerName("y.example"), is_unauthenticated=True)

    proved = Deferred.fromCoroutine(
        keyring.get_keys_of_unauthenticated(SOUTH, [B.key_id], world.now, "a")
    )
    of_event = Deferred.fromCoroutine(keyring.get_signers(event(A)))
    for answered in world.held[MAX_CONCURRENT_UNAUTHENTICATED:]:
        answered.callback(None)
    assert await proved == {B.key_id: B.public_key}
    assert await of_event == [NORTH]
    held, world.held = world.held[:MAX_CONCURRENT_UNAUTHENTICATED], None
    for answered in held:
        answered.callback(None)
    for each in crowd:
        assert await each == {}
    world.now += REFETCH_PAUSE_MS
    assert await keyring.renew(NORTH, is_unauthenticated=True)


@pytest.mark.parametrize("is_one_address", [True, False])
async def test_requests_in_many_names_do_not_block_other_unknown_servers(
    sqlite_database: Database, is_one_address: bool
) -> None:
    """From one address all that there are, or from everywhere those of one domain."""
    world = World()
    keyring = make(world, sqlite_database)
    world.held = []
    refused: list[object] = []
    for number in range(200):
        name, address = (
            (f"x{number}.example", "a")
            if is_one_address
            else (f"x{number}.evil.example", f"a{number}")
        )
        asking = keyring.get_keys_of_unauthenticated(ServerName(name), [A.key_id], START, address)
        Deferred.fromCoroutine(asking).addErrback(refused.append)
    assert len(refused) == 200 - MAX_WAITING_UNAUTHENTICATED // 2

    world.says = {NORTH: document(NORTH, A), SOUTH: document(SOUTH, B)}
    north = Deferred.fromCoroutine(
        keyring.get_keys_of_unauthenticated(NORTH, [A.key_id], START, "n")
    )
    south = Deferred.fromCoroutine(
        keyring.get_keys_of_unauthenticated(SOUTH, [B.key_id], START, "s")
    )
    rounds = 0
    while not (north.called and south.called):
        rounds += 1
        held, world.held = world.held, []
        for answered in held:
            answered.callback(None)
    assert rounds <= (2 if is_one_address else 1), "each may take ten seconds"
    assert await north == {A.key_id: A.public_key}
    assert await south == {B.key_id: B.public_key}
    while world.held:
        world.held.pop().callback(None)
    world.held = None
    later = ServerName("later.example")
    world.says[later] = document(later, A)
    assert await keyring.renew(later, is_unauthenticated=True)


async def test_a_validity_in_the_far_future_is_capped(sqlite_database: Database) -> None:
    world = World()
    world.says[NORTH] = document(NORTH, A, until=START + 1000 * DAY)
    keyring = make(world, sqlite_database)
    assert await keyring.get_keys(NORTH, [A.key_id], START + LONGEST_VALID_MS)
    assert not await keyring.get_keys(NORTH, [A.key_id], START + LONGEST_VALID_MS + 1)


@pytest.mark.parametrize(
    "said",
    [
        document(SOUTH, A),
        document(NORTH, A, signer=B),
        document(NORTH, A) | {"valid_until_ts": START + 2 * DAY},
        document(NORTH, A) | {"signatures": {}},
        document(NORTH, A) | {"signatures": {NORTH: None}},
        document(NORTH, A) | {"verify_keys": [1]},
        document(NORTH, A) | {"valid_until_ts": "soon"},
        document(NORTH, A) | {"valid_until_ts": True},
        document(NORTH, A) | {"valid_until_ts": -1},
        document(NORTH, A) | {"valid_until_ts": 1 << 60},
        {},
        [],
    ],
)
async def test_keys_without_the_servers_own_signature_are_refused(
    sqlite_database: Database, said: Any
) -> None:
    world = World()
    world.says[NORTH] = said
    assert await make(world, sqlite_database).get_keys(NORTH, [A.key_id], 0) == {}


async def test_malformed_keys_beside_good_ones_are_skipped(sqlite_database: Database) -> None:
    world = World()
    said = document(NORTH, A)
    said["verify_keys"] |= {
        "ed25519:short": {"key": "AAAA"},
        "rsa:x": {"key": "AAAA"},
        "": None,
        "x y": {"key": 5},
    }
    said["old_verify_keys"] = {
        "ed25519:c": {"key": "AAAA", "expired_ts": "x"},
        "ed25519:d": [],
        "ed25519:e": {},
    }
    world.says[NORTH] = sign_json({**said, "signatures": {}}, NORTH, A)
    assert await make(world, sqlite_database).get_keys(NORTH, [A.key_id], 0) == {
        A.key_id: A.public_key
    }


async def test_a_blocked_server_is_not_queried_for_keys(sqlite_database: Database) -> None:
    world = World()
    world.says[NORTH] = document(NORTH, A)
    assert await make(world, sqlite_database, allowed=[SOUTH]).get_keys(NORTH, [A.key_id], 0) == {}
    assert world.log == []


async def test_our_own_current_and_old_keys_are_known(sqlite_database: Database) -> None:
    world = World()
    keyring = make(world, sqlite_database)
    own = key("here")
    assert await keyring.get_keys(HERE, [own.key_id, B.key_id], START - 2 * DAY) == {
        own.key_id: own.public_key,
        B.key_id: B.public_key,
    }
    assert await keyring.get_keys(HERE, [own.key_id, B.key_id], START) == {
        own.key_id: own.public_key
    }
    assert world.log == []


# ---- events


async def test_an_old_key_verifies_events_from_its_time(sqlite_database: Database) -> None:
    world = World()
    world.says[NORTH] = document(NORTH, A, old={B: START - DAY})
    keyring = make(world, sqlite_database)
    assert await keyring.get_signers(event(B, at=START - 2 * DAY)) == [NORTH]
    assert await keyring.get_signers(event(B, at=START)) == []
    assert await keyring.get_signers(event(A, at=START)) == [NORTH]
    assert await keyring.get_keys(NORTH, [B.key_id], world.now) == {}


async def test_rooms_of_old_versions_ignore_key_validity(sqlite_database: Database) -> None:
    world = World()
    world.says[NORTH] = document(NORTH, A, old={B: START - DAY})
    keyring = make(world, sqlite_database)
    assert await keyring.get_signers(event(B, at=START, version="4")) == [NORTH]
    assert await keyring.get_signers(event(A, at=START + 90 * DAY, version="4")) == [NORTH]
    assert await keyring.get_signers(event(A, at=START + 90 * DAY, version="5")) == []


async def test_an_event_by_another_key_of_the_same_name_is_not_signed(
    sqlite_database: Database,
) -> None:
    world = World()
    world.says[NORTH] = document(NORTH, A)
    keyring = make(world, sqlite_database)
    assert await keyring.get_signers(event(SigningKey("a", bytes(32)))) == []


async def test_the_keys_of_many_events_are_fetched_by_one_request_per_server(
    sqlite_database: Database,
) -> None:
    world = World()
    servers = [ServerName(f"s{number}.example") for number in range(40)]
    for server in servers:
        world.says[server] = document(server, A)
    keyring = make(world, sqlite_database)
    events = [event(A, server=server) for server in servers for _ in range(3)]
    await keyring.prefetch(events)
    assert sorted(destination for destination, _ in world.log) == sorted(servers)
    for each in events:
        assert await keyring.get_signers(each) == [each.sender.partition(":")[2]]
    assert len(world.log) == 40


async def test_a_key_that_its_server_no_longer_lists_stays_valid_for_its_time(
    sqlite_database: Database,
) -> None:
    world = World()
    world.says[NORTH] = document(NORTH, A)
    keyring = make(world, sqlite_database)
    assert await keyring.get_signers(event(A)) == [NORTH]
    world.now += 2 * DAY
    world.says[NORTH] = document(NORTH, B, until=world.now + DAY)
    assert await keyring.get_signers(event(B, at=world.now)) == [NORTH]
    assert await keyring.get_signers(event(A)) == [NORTH]
    assert await keyring.get_signers(event(A, at=world.now)) == []


async def test_a_withdrawn_key_is_not_used_though_it_was_valid_for_longer(
    sqlite_database: Database,
) -> None:
    world = World()
    world.says[NORTH] = document(NORTH, A, until=START + 6 * DAY)
    keyring = make(world, sqlite_database)
    await keyring.get_signers(event(A))
    world.now += 4 * DAY
    world.says[NORTH] = document(NORTH, B, until=world.now + DAY, old={A: START + DAY})
    await keyring.get_signers(event(B, at=world.now))
    assert await keyring.get_signers(event(A, at=START + 2 * DAY)) == []
    assert await keyring.get_signers(event(A)) == [NORTH]


# ---- notaries


def by_notary(said: dict[str, Any], signer: SigningKey = N) -> dict[str, Any]:
    return sign_json(said, NOTARY, signer)


PINNED = Notary(NOTARY, {N.key_id: N.public_key})


async def test_a_notary_is_queried_if_the_server_does_not_answer(sqlite_database: Database) -> None:
    world = World()
    world.notary_says = [by_notary(document(NORTH, A))]
    keyring = make(world, sqlite_database, PINNED)
    assert await keyring.get_keys(NORTH, [A.key_id], START) == {A.key_id: A.public_key}
    assert world.log == [(NORTH, "/_matrix/key/v2/server"), (NOTARY, "/_matrix/key/v2/query")]
    assert world.question == {NORTH: {A.key_id: {"minimum_valid_until_ts": START}}}


async def test_a_notary_is_not_queried_if_the_server_answers(sqlite_database: Database) -> None:
    world = World()
    world.says[NORTH] = document(NORTH, A)
    keyring = make(world, sqlite_database, PINNED)
    await keyring.get_keys(NORTH, [A.key_id], START)
    assert world.count(NOTARY) == 0


async def test_notaries_are_queried_first_for_keys_of_many_servers(
    sqlite_database: Database,
) -> None:
    world = World()
    servers = [ServerName(f"s{number}.example") for number in range(20)]
    world.notary_says = [by_notary(document(server, A)) for server in servers[:19]]
    world.says[servers[19]] = document(servers[19], A)
    keyring = make(world, sqlite_database, PINNED)
    await keyring.prefetch([event(A, server=server) for server in servers])
    assert [destination for destination, _ in world.log] == [NOTARY, servers[19]]


@pytest.mark.parametrize(
    "answer",
    [
        document(NORTH, A),
        by_notary(document(NORTH, A), key("x")),
        by_notary(document(NORTH, A, signer=B)),
        by_notary(document(SOUTH, A)),
        {"server_name": {}},
        5,
    ],
)
async def test_unsigned_and_invented_keys_of_a_notary_are_refused(
    sqlite_database: Database, answer: Any
) -> None:
    world = World()
    world.notary_says = [answer]
    assert await make(world, sqlite_database, PINNED).get_keys(NORTH, [A.key_id], START) == {}


async def test_the_key_of_a_notary_that_is_not_pinned_is_fetched(sqlite_database: Database) -> None:
    world = World()
    world.says[NOTARY] = document(NOTARY, N)
    world.notary_says = [by_notary(document(NORTH, A))]
    keyring = make(world, sqlite_database, Notary(NOTARY, {}))
    assert await keyring.get_keys(NORTH, [A.key_id], START) == {A.key_id: A.public_key}


async def test_a_trusted_notary_need_not_sign(sqlite_database: Database) -> None:
    world = World()
    world.notary_says = [document(NORTH, A)]
    keyring = make(world, sqlite_database, Notary(NOTARY, {}, unsigned=True))
    assert await keyring.get_keys(NORTH, [A.key_id], START) == {A.key_id: A.public_key}


async def test_a_notary_cannot_restore_a_withdrawn_key(
    sqlite_database: Database,
) -> None:
    world = World()
    world.says[NORTH] = document(NORTH, B, until=START + DAY, old={A: START - 5 * DAY})
    keyring = make(world, sqlite_database, PINNED)
    await keyring.get_keys(NORTH, [B.key_id], START)
    world.notary_says = [by_notary(document(NORTH, A, key("c"), until=START - DAY))]
    assert await keyring.get_signers(event(A, at=START - 2 * DAY)) == []
    assert await keyring.get_signers(event(key("c"), at=START - 2 * DAY)) == [NORTH]
    assert await keyring.get_keys(NORTH, [B.key_id], START) == {B.key_id: B.public_key}
