"""Text with NUL characters, which PostgreSQL does not store, is refused or skipped without an
error of ours."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from twisted.logger import capturedLogs

from federation.peers.client import RefusedByRemote
from federation.protocol.ids import ServerName, UserID
from storage.engine.database import Database
from tests.helpers.databases import copy_sqlite, open_inline
from tests.helpers.federated_rooms import NORTH, SOUTH, Shared, shared
from tests.helpers.network import Network

V1 = "/_matrix/federation/v1"
Q = quote("a\0b")


@pytest.fixture
def half_postgres(tmp_path: Path, sqlite_template: Path, postgres_database: Database) -> Network:
    """The north keeps its rooms in PostgreSQL."""
    databases = [postgres_database]

    def open_another() -> Database:
        if len(databases) == 1 and not network.servers:
            return postgres_database
        databases.append(open_inline(copy_sqlite(sqlite_template, tmp_path)))
        return databases[-1]

    network = Network(tmp_path, open_another)
    return network


GETS = [
    f"{V1}/query/profile?user_id=%40alice%3A{NORTH}&field={Q}",
    f"{V1}/query/profile?user_id=%40{Q}%3A{NORTH}",
    f"{V1}/query/directory?room_alias=%23{Q}%3A{NORTH}",
    f"{V1}/user/devices/%40{Q}%3A{NORTH}",
    f"{V1}/event/%24{Q}",
    f"{V1}/publicRooms?since={Q}",
    f"{V1}/hierarchy/%21{Q}%3A{NORTH}",
    f"{V1}/media/download/{Q}",
    f"{V1}/media/thumbnail/{Q}?width=1&height=1",
    f"{V1}/make_join/%21{Q}%3A{NORTH}/%40bob%3A{SOUTH}",
    f"{V1}/state_ids/%21{Q}%3A{NORTH}?event_id=%24x",
    f"/_matrix/key/v2/query/{Q}",
]


def posts(room: Shared) -> dict[str, tuple[str, str, Mapping[str, Any]]]:
    """Requests with bodies, by name."""
    alice, nul = room.alice.user_id, "a\0b"
    user = f"@{nul}:{NORTH}"
    missing = f"{V1}/get_missing_events/{quote(room.room_id)}"
    signed = {"mxid": alice, "token": nul, "signatures": {}}
    invite = {"mxid": alice, "room_id": room.room_id, "sender": alice, "signed": signed}
    exchanged = {
        "state_key": room.bob.user_id,
        "content": {"third_party_invite": {"signed": signed}},
    }
    return {
        "missing": (
            "POST",
            missing,
            {"earliest_events": ["$" + nul], "latest_events": ["$" + nul, nul]},
        ),
        "query": ("POST", f"{V1}/user/keys/query", {"device_keys": {user: [nul], alice: [nul]}}),
        "claim": (
            "POST",
            f"{V1}/user/keys/claim",
            {"one_time_keys": {user: {nul: nul}, alice: {nul: "x", "A": nul}}},
        ),
        "directory": (
            "POST",
            f"{V1}/publicRooms",
            {"filter": {"generic_search_term": nul, "room_types": [nul]}},
        ),
        "bound": ("PUT", f"{V1}/3pid/onbind", {"mxid": alice, "invites": [invite]}),
        "exchange": ("PUT", f"{V1}/exchange_third_party_invite/{quote(room.room_id)}", exchanged),
        "keys": (
            "POST",
            "/_matrix/key/v2/query",
            {"server_keys": {nul: {nul: {}}, SOUTH: {nul: {}}}},
        ),
    }


async def test_requests_with_nul_characters_cause_no_500(half_postgres: Network) -> None:
    room = await shared(half_postgres, config={NORTH: "allow_public_rooms_over_federation: true\n"})
    requests, north = room.south.edge.requests, ServerName(NORTH)
    refused: dict[str, int] = {}
    with capturedLogs() as logged:
        for uri in GETS:
            try:
                await requests.get(north, uri)
            except RefusedByRemote as refusal:
                refused[uri] = refusal.status
        for name, (method, path, body) in posts(room).items():
            try:
                await (requests.post if method == "POST" else requests.put)(north, path, body)
            except RefusedByRemote as refusal:
                refused[name] = refusal.status

    assert not {what: status for what, status in refused.items() if status >= 500}
    assert not [entry for entry in logged if "log_failure" in entry]


async def test_transactions_with_nul_characters_cause_no_500(half_postgres: Network) -> None:
    room = await shared(half_postgres)
    nul = "a\0b"
    bob = UserID(room.bob.user_id)
    honest = await room.south.build_next(room.room_id, bob, "m.room.message", {"body": "salom"})
    thread = {"event_ids": [honest.event_id], "data": {"thread_id": "$" + nul}}
    to_device = {"sender": bob, "type": nul, "message_id": "1", "messages": {}}
    device = {"user_id": bob, "device_id": nul, "stream_id": 1}
    edus = [
        ("m.typing", {"room_id": nul, "user_id": bob, "typing": True}),
        (
            "m.receipt",
            {nul: {"m.read": {bob: thread}}, room.room_id: {"m.read": {bob: thread}}},
        ),
        (
            "m.direct_to_device",
            {
                **to_device,
                "messages": {f"@{nul}:{NORTH}": {"*": {}}, room.alice.user_id: {nul: {}}},
            },
        ),
        ("m.device_list_update", device),
        (
            "m.presence",
            {"push": [{"user_id": f"@{nul}:{SOUTH}", "presence": "online", "status_msg": nul}]},
        ),
    ]
    names = {"displayname": nul, "membership": "join", "avatar_url": nul, "reason": nul}
    pdus = [
        {**honest.pdu, "room_id": f"!{nul}:{NORTH}"},
        {**honest.pdu, "room_id": nul},
        (await room.south.build_next(room.room_id, bob, "m.room.member", names, bob)).pdu,
        honest.pdu,
    ]
    for content in (
        {"m.relates_to": {"rel_type": nul, "event_id": "$" + nul}},
        {"m.relates_to": {"rel_type": "m.annotation", "event_id": honest.event_id, "key": nul}},
        {
            "body": nul,
            "msgtype": nul,
            "filename": nul,
            "url": f"mxc://{SOUTH}/{nul}",
            "m.mentions": {"user_ids": [nul]},
        },
    ):
        event = await room.south.build_next(room.room_id, bob, "m.room.message", content)
        pdus.append(event.pdu)

    with capturedLogs() as logged:
        answer = await room.south.push(
            NORTH, pdus, [{"edu_type": type, "content": content} for type, content in edus]
        )
        assert room.alice.get("/_matrix/client/v3/sync").status == 200

    assert answer["pdus"][honest.event_id] == {}
    assert not [entry for entry in logged if "log_failure" in entry]
