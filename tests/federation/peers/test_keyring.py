"""Other servers' keys: when they are fetched, from whom, what is accepted, and bounds of the
work that a malicious server causes."""

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from federation.peers.keyring import (
    MAX_CONCURRENT_UNAUTHENTICATED,
    MAX_WAITING_UNAUTHENTICATED,
    REFETCH_PAUSE_MS,
    RETRIES,
    Notary,
)
from federation.protocol.errors import LimitExceeded
from federation.protocol.event_signing import build_event
from federation.protocol.events import Event, parse_event
from federation.protocol.ids import KeyID, RoomID, ServerName, UserID
from federation.protocol.key_documents import LONGEST_VALID_MS
from federation.protocol.room_versions import ROOM_VERSIONS
from federation.protocol.signing import SigningKey, encode_base64, sign_json
from storage.engine.database import Database
from storage.federation.server_keys import MAX_STORED_KEYS, ServerKeyStore
from tests.helpers.key_servers import (
    DAY,
    HERE,
    NORTH,
    NOTARY,
    SOUTH,
    START,
    A,
    B,
    KeyServers,
    N,
    key_document,
    make_keyring,
    sign_as_notary,
    signing_key,
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
    servers = KeyServers()
    servers.documents[NORTH] = key_document(NORTH, A, B)
    keyring = make_keyring(servers, database)
    assert await keyring.get_keys(NORTH, [A.key_id], servers.now) == {A.key_id: A.public_key}
    assert await keyring.get_keys(NORTH, [B.key_id], servers.now) == {B.key_id: B.public_key}
    assert await make_keyring(servers, database).get_keys(NORTH, [A.key_id], servers.now) == {
        A.key_id: A.public_key
    }
    assert servers.log == [(NORTH, "/_matrix/key/v2/server")]


async def test_concurrent_callers_cause_one_request(sqlite_database: Database) -> None:
    servers = KeyServers()
    servers.documents[NORTH] = key_document(NORTH, A)
    servers.held = []
    keyring = make_keyring(servers, sqlite_database)
    waiting = [
        Deferred.fromCoroutine(keyring.get_keys(NORTH, [A.key_id], START)) for _ in range(50)
    ]
    waiting[7].addErrback(lambda _: None)
    waiting[7].cancel()
    assert len(servers.held) == 1
    servers.held[0].callback(None)
    del waiting[7]
    assert [await each for each in waiting] == [{A.key_id: A.public_key}] * 49


async def test_keys_are_renewed_in_the_second_half_of_their_validity_without_a_wait(
    sqlite_database: Database,
) -> None:
    servers = KeyServers()
    servers.documents[NORTH] = key_document(NORTH, A)
    keyring = make_keyring(servers, sqlite_database)
    await keyring.get_keys(NORTH, [A.key_id], servers.now)
    servers.now += DAY // 2 - 1
    await keyring.get_keys(NORTH, [A.key_id], servers.now)
    assert len(servers.log) == 1
    servers.now += 1
    servers.documents[NORTH] = key_document(NORTH, A, until=servers.now + DAY)
    servers.held = []
    assert await keyring.get_keys(NORTH, [A.key_id], servers.now)
    assert len(servers.log) == 2
    servers.held.pop().callback(None)
    servers.now += DAY // 2 - 1
    await keyring.get_keys(NORTH, [A.key_id], servers.now)
    assert len(servers.log) == 2


async def test_an_expired_key_is_not_used_until_it_is_renewed(
    sqlite_database: Database,
) -> None:
    servers = KeyServers()
    servers.documents[NORTH] = key_document(NORTH, A)
    keyring = make_keyring(servers, sqlite_database)
    await keyring.get_keys(NORTH, [A.key_id], servers.now)
    servers.now += DAY + 1
    del servers.documents[NORTH]
    assert await keyring.get_keys(NORTH, [A.key_id], servers.now) == {}
    servers.now += RETRIES.max_ms
    servers.documents[NORTH] = key_document(NORTH, A, until=servers.now + DAY)
    assert await keyring.get_keys(NORTH, [A.key_id], servers.now) == {A.key_id: A.public_key}


async def test_an_unresponsive_server_is_queried_less_and_less_often(
    sqlite_database: Database,
) -> None:
    servers = KeyServers()
    keyring = make_keyring(servers, sqlite_database)
    for _ in range(3600):
        assert await keyring.get_keys(NORTH, [A.key_id], servers.now) == {}
        servers.now += 1000
    assert 12 <= len(servers.log) <= 20


async def test_invented_key_ids_cause_few_requests(sqlite_database: Database) -> None:
    servers = KeyServers()
    servers.documents[NORTH] = key_document(NORTH, A, until=START + 6 * DAY)
    keyring = make_keyring(servers, sqlite_database)
    for number in range(3600):
        assert (
            await keyring.get_keys(NORTH, [KeyID(f"ed25519:made_up_{number}")], servers.now) == {}
        )
        servers.now += 1000
    assert len(servers.log) <= 20
    assert await keyring.get_keys(NORTH, [A.key_id], servers.now) == {A.key_id: A.public_key}


async def test_a_new_key_in_each_request_causes_few_fetches_and_stored_keys(
    sqlite_database: Database,
) -> None:
    servers = KeyServers()
    keyring = make_keyring(servers, sqlite_database)
    proved = 0
    for number in range(600):
        asked = signing_key(f"k{number}")
        others = {
            f"ed25519:v{number}_{each}": {"key": encode_base64(asked.public_key)}
            for each in range(99)
        }
        said = key_document(NORTH, asked, until=servers.now + DAY)
        said["verify_keys"] |= others
        said["old_verify_keys"] = {
            f"{each}_old": entry | {"expired_ts": servers.now} for each, entry in others.items()
        }
        servers.documents[NORTH] = sign_json({**said, "signatures": {}}, NORTH, asked)
        proved += bool(
            await keyring.get_keys_of_unauthenticated(NORTH, [asked.key_id], servers.now, "a")
        )
        servers.now += 100
    assert 1 <= proved <= len(servers.log) <= 60_000 // REFETCH_PAUSE_MS
    assert (await keyring.get_keys(NORTH, [asked.key_id], servers.now)) == {
        asked.key_id: asked.public_key
    }
    assert (
        len((await ServerKeyStore(sqlite_database).get_keys([NORTH]))[NORTH].keys)
        == MAX_STORED_KEYS
    )


async def test_a_key_of_short_validity_is_not_fetched_for_each_request(
    sqlite_database: Database,
) -> None:
    servers = KeyServers()
    keyring = make_keyring(servers, sqlite_database)
    for _ in range(600):
        servers.documents[NORTH] = key_document(NORTH, A, until=servers.now + 1)
        await keyring.get_keys_of_unauthenticated(NORTH, [A.key_id], servers.now, "a")
        servers.now += 100
    assert len(servers.log) <= 60_000 // REFETCH_PAUSE_MS


async def test_invented_servers_do_not_delay_the_requests_of_others(
    sqlite_database: Database,
) -> None:
    """Anybody may name servers in requests, as many as they like, and let each of them take its
    time."""
    servers = KeyServers()
    servers.documents = {
        NORTH: key_document(NORTH, A),
        SOUTH: key_document(SOUTH, B, until=START + 1),
    }
    keyring = make_keyring(servers, sqlite_database)
    assert await keyring.get_keys_of_unauthenticated(SOUTH, [B.key_id], START, "a")
    servers.now += REFETCH_PAUSE_MS
    servers.documents[SOUTH] = key_document(SOUTH, B)
    servers.held = []
    crowd = [
        Deferred.fromCoroutine(
            keyring.get_keys_of_unauthenticated(
                ServerName(f"x{number}.example"), [A.key_id], servers.now, f"a{number}"
            )
        )
        for number in range(MAX_WAITING_UNAUTHENTICATED)
    ]

    with pytest.raises(LimitExceeded):
        await keyring.get_keys_of_unauthenticated(
            ServerName("y.example"), [A.key_id], servers.now, "b"
        )
    assert len(servers.held) == MAX_CONCURRENT_UNAUTHENTICATED
    assert not await keyring.renew(ServerName("y.example"), is_unauthenticated=True)

    proved = Deferred.fromCoroutine(
        keyring.get_keys_of_unauthenticated(SOUTH, [B.key_id], servers.now, "a")
    )
    of_event = Deferred.fromCoroutine(keyring.get_signers(event(A)))
    for answered in servers.held[MAX_CONCURRENT_UNAUTHENTICATED:]:
        answered.callback(None)
    assert await proved == {B.key_id: B.public_key}
    assert await of_event == [NORTH]
    held, servers.held = servers.held[:MAX_CONCURRENT_UNAUTHENTICATED], None
    for answered in held:
        answered.callback(None)
    for each in crowd:
        assert await each == {}
    servers.now += REFETCH_PAUSE_MS
    assert await keyring.renew(NORTH, is_unauthenticated=True)


@pytest.mark.parametrize("is_one_address", [True, False])
async def test_requests_in_many_names_do_not_block_other_unknown_servers(
    sqlite_database: Database, is_one_address: bool
) -> None:
    """From one address all that there are, or from everywhere those of one domain."""
    servers = KeyServers()
    keyring = make_keyring(servers, sqlite_database)
    servers.held = []
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

    servers.documents = {NORTH: key_document(NORTH, A), SOUTH: key_document(SOUTH, B)}
    north = Deferred.fromCoroutine(
        keyring.get_keys_of_unauthenticated(NORTH, [A.key_id], START, "n")
    )
    south = Deferred.fromCoroutine(
        keyring.get_keys_of_unauthenticated(SOUTH, [B.key_id], START, "s")
    )
    rounds = 0
    while not (north.called and south.called):
        rounds += 1
        held, servers.held = servers.held, []
        for answered in held:
            answered.callback(None)
    assert rounds <= (2 if is_one_address else 1), "each may take ten seconds"
    assert await north == {A.key_id: A.public_key}
    assert await south == {B.key_id: B.public_key}
    while servers.held:
        servers.held.pop().callback(None)
    servers.held = None
    later = ServerName("later.example")
    servers.documents[later] = key_document(later, A)
    assert await keyring.renew(later, is_unauthenticated=True)


async def test_a_validity_in_the_far_future_is_capped(sqlite_database: Database) -> None:
    servers = KeyServers()
    servers.documents[NORTH] = key_document(NORTH, A, until=START + 1000 * DAY)
    keyring = make_keyring(servers, sqlite_database)
    assert await keyring.get_keys(NORTH, [A.key_id], START + LONGEST_VALID_MS)
    assert not await keyring.get_keys(NORTH, [A.key_id], START + LONGEST_VALID_MS + 1)


@pytest.mark.parametrize(
    "said",
    [
        key_document(SOUTH, A),
        key_document(NORTH, A, signer=B),
        key_document(NORTH, A) | {"valid_until_ts": START + 2 * DAY},
        key_document(NORTH, A) | {"signatures": {}},
        key_document(NORTH, A) | {"signatures": {NORTH: None}},
        key_document(NORTH, A) | {"verify_keys": [1]},
        key_document(NORTH, A) | {"valid_until_ts": "soon"},
        key_document(NORTH, A) | {"valid_until_ts": True},
        key_document(NORTH, A) | {"valid_until_ts": -1},
        key_document(NORTH, A) | {"valid_until_ts": 1 << 60},
        {},
        [],
    ],
)
async def test_keys_without_the_servers_own_signature_are_refused(
    sqlite_database: Database, said: Any
) -> None:
    servers = KeyServers()
    servers.documents[NORTH] = said
    assert await make_keyring(servers, sqlite_database).get_keys(NORTH, [A.key_id], 0) == {}


async def test_malformed_keys_beside_good_ones_are_skipped(sqlite_database: Database) -> None:
    servers = KeyServers()
    said = key_document(NORTH, A)
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
    servers.documents[NORTH] = sign_json({**said, "signatures": {}}, NORTH, A)
    assert await make_keyring(servers, sqlite_database).get_keys(NORTH, [A.key_id], 0) == {
        A.key_id: A.public_key
    }


async def test_a_blocked_server_is_not_queried_for_keys(sqlite_database: Database) -> None:
    servers = KeyServers()
    servers.documents[NORTH] = key_document(NORTH, A)
    assert (
        await make_keyring(servers, sqlite_database, allowed=[SOUTH]).get_keys(NORTH, [A.key_id], 0)
        == {}
    )
    assert servers.log == []


async def test_our_own_current_and_old_keys_are_known(sqlite_database: Database) -> None:
    servers = KeyServers()
    keyring = make_keyring(servers, sqlite_database)
    own = signing_key("here")
    assert await keyring.get_keys(HERE, [own.key_id, B.key_id], START - 2 * DAY) == {
        own.key_id: own.public_key,
        B.key_id: B.public_key,
    }
    assert await keyring.get_keys(HERE, [own.key_id, B.key_id], START) == {
        own.key_id: own.public_key
    }
    assert servers.log == []


# ---- events


async def test_an_old_key_verifies_events_from_its_time(sqlite_database: Database) -> None:
    servers = KeyServers()
    servers.documents[NORTH] = key_document(NORTH, A, old={B: START - DAY})
    keyring = make_keyring(servers, sqlite_database)
    assert await keyring.get_signers(event(B, at=START - 2 * DAY)) == [NORTH]
    assert await keyring.get_signers(event(B, at=START)) == []
    assert await keyring.get_signers(event(A, at=START)) == [NORTH]
    assert await keyring.get_keys(NORTH, [B.key_id], servers.now) == {}


async def test_rooms_of_old_versions_ignore_key_validity(sqlite_database: Database) -> None:
    servers = KeyServers()
    servers.documents[NORTH] = key_document(NORTH, A, old={B: START - DAY})
    keyring = make_keyring(servers, sqlite_database)
    assert await keyring.get_signers(event(B, at=START, version="4")) == [NORTH]
    assert await keyring.get_signers(event(A, at=START + 90 * DAY, version="4")) == [NORTH]
    assert await keyring.get_signers(event(A, at=START + 90 * DAY, version="5")) == []


async def test_an_event_by_another_key_of_the_same_name_is_not_signed(
    sqlite_database: Database,
) -> None:
    servers = KeyServers()
    servers.documents[NORTH] = key_document(NORTH, A)
    keyring = make_keyring(servers, sqlite_database)
    assert await keyring.get_signers(event(SigningKey("a", bytes(32)))) == []


async def test_the_keys_of_many_events_are_fetched_by_one_request_per_server(
    sqlite_database: Database,
) -> None:
    servers = KeyServers()
    names = [ServerName(f"s{number}.example") for number in range(40)]
    for server in names:
        servers.documents[server] = key_document(server, A)
    keyring = make_keyring(servers, sqlite_database)
    events = [event(A, server=server) for server in names for _ in range(3)]
    await keyring.prefetch(events)
    assert sorted(destination for destination, _ in servers.log) == sorted(names)
    for each in events:
        assert await keyring.get_signers(each) == [each.sender.partition(":")[2]]
    assert len(servers.log) == 40


async def test_a_key_that_its_server_no_longer_lists_stays_valid_for_its_time(
    sqlite_database: Database,
) -> None:
    servers = KeyServers()
    servers.documents[NORTH] = key_document(NORTH, A)
    keyring = make_keyring(servers, sqlite_database)
    assert await keyring.get_signers(event(A)) == [NORTH]
    servers.now += 2 * DAY
    servers.documents[NORTH] = key_document(NORTH, B, until=servers.now + DAY)
    assert await keyring.get_signers(event(B, at=servers.now)) == [NORTH]
    assert await keyring.get_signers(event(A)) == [NORTH]
    assert await keyring.get_signers(event(A, at=servers.now)) == []


async def test_a_withdrawn_key_is_not_used_though_it_was_valid_for_longer(
    sqlite_database: Database,
) -> None:
    servers = KeyServers()
    servers.documents[NORTH] = key_document(NORTH, A, until=START + 6 * DAY)
    keyring = make_keyring(servers, sqlite_database)
    await keyring.get_signers(event(A))
    servers.now += 4 * DAY
    servers.documents[NORTH] = key_document(NORTH, B, until=servers.now + DAY, old={A: START + DAY})
    await keyring.get_signers(event(B, at=servers.now))
    assert await keyring.get_signers(event(A, at=START + 2 * DAY)) == []
    assert await keyring.get_signers(event(A)) == [NORTH]


# ---- notaries


PINNED = Notary(NOTARY, {N.key_id: N.public_key})


async def test_a_notary_is_queried_if_the_server_does_not_answer(sqlite_database: Database) -> None:
    servers = KeyServers()
    servers.notary_documents = [sign_as_notary(key_document(NORTH, A))]
    keyring = make_keyring(servers, sqlite_database, PINNED)
    assert await keyring.get_keys(NORTH, [A.key_id], START) == {A.key_id: A.public_key}
    assert servers.log == [(NORTH, "/_matrix/key/v2/server"), (NOTARY, "/_matrix/key/v2/query")]
    assert servers.question == {NORTH: {A.key_id: {"minimum_valid_until_ts": START}}}


async def test_a_notary_is_not_queried_if_the_server_answers(sqlite_database: Database) -> None:
    servers = KeyServers()
    servers.documents[NORTH] = key_document(NORTH, A)
    keyring = make_keyring(servers, sqlite_database, PINNED)
    await keyring.get_keys(NORTH, [A.key_id], START)
    assert servers.count(NOTARY) == 0


async def test_notaries_are_queried_first_for_keys_of_many_servers(
    sqlite_database: Database,
) -> None:
    servers = KeyServers()
    names = [ServerName(f"s{number}.example") for number in range(20)]
    servers.notary_documents = [sign_as_notary(key_document(server, A)) for server in names[:19]]
    servers.documents[names[19]] = key_document(names[19], A)
    keyring = make_keyring(servers, sqlite_database, PINNED)
    await keyring.prefetch([event(A, server=server) for server in names])
    assert [destination for destination, _ in servers.log] == [NOTARY, names[19]]


@pytest.mark.parametrize(
    "answer",
    [
        key_document(NORTH, A),
        sign_as_notary(key_document(NORTH, A), signing_key("x")),
        sign_as_notary(key_document(NORTH, A, signer=B)),
        sign_as_notary(key_document(SOUTH, A)),
        {"server_name": {}},
        5,
    ],
)
async def test_unsigned_and_invented_keys_of_a_notary_are_refused(
    sqlite_database: Database, answer: Any
) -> None:
    servers = KeyServers()
    servers.notary_documents = [answer]
    assert (
        await make_keyring(servers, sqlite_database, PINNED).get_keys(NORTH, [A.key_id], START)
        == {}
    )


async def test_the_key_of_a_notary_that_is_not_pinned_is_fetched(sqlite_database: Database) -> None:
    servers = KeyServers()
    servers.documents[NOTARY] = key_document(NOTARY, N)
    servers.notary_documents = [sign_as_notary(key_document(NORTH, A))]
    keyring = make_keyring(servers, sqlite_database, Notary(NOTARY, {}))
    assert await keyring.get_keys(NORTH, [A.key_id], START) == {A.key_id: A.public_key}


async def test_a_trusted_notary_need_not_sign(sqlite_database: Database) -> None:
    servers = KeyServers()
    servers.notary_documents = [key_document(NORTH, A)]
    keyring = make_keyring(servers, sqlite_database, Notary(NOTARY, {}, unsigned=True))
    assert await keyring.get_keys(NORTH, [A.key_id], START) == {A.key_id: A.public_key}


async def test_a_notary_cannot_restore_a_withdrawn_key(
    sqlite_database: Database,
) -> None:
    servers = KeyServers()
    servers.documents[NORTH] = key_document(NORTH, B, until=START + DAY, old={A: START - 5 * DAY})
    keyring = make_keyring(servers, sqlite_database, PINNED)
    await keyring.get_keys(NORTH, [B.key_id], START)
    servers.notary_documents = [
        sign_as_notary(key_document(NORTH, A, signing_key("c"), until=START - DAY))
    ]
    assert await keyring.get_signers(event(A, at=START - 2 * DAY)) == []
    assert await keyring.get_signers(event(signing_key("c"), at=START - 2 * DAY)) == [NORTH]
    assert await keyring.get_keys(NORTH, [B.key_id], START) == {B.key_id: B.public_key}
