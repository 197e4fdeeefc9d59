"""Operations that suspended and locked users may still do.

spec: client-server-api#account-suspension, client-server-api#account-locking
"""

from typing import Any

from storage.accounts.accounts import AccountStore
from storage.engine.database import Database
from tests.helpers.http import Answer
from tests.helpers.room_actions import (
    V3,
    all_texts,
    create,
    join,
    membership,
    ok,
    put_event,
    put_state,
    redact,
    refused,
    room_path,
    say,
)
from tests.helpers.server import User

SUSPENDED = (403, "M_USER_SUSPENDED")


async def set_flags(
    database: Database, user: User, *, locked: bool = False, suspended: bool = False
) -> None:
    store = AccountStore(database)
    await database.write(
        "set_flags", store.set_flags, user.user_id, locked=locked, suspended=suspended
    )


async def test_a_suspended_user_reads_and_leaves(
    sqlite_database: Database, alice: User, bob: User
) -> None:
    room_id, other = create(alice, preset="public_chat"), create(alice, invite=[bob.user_id])
    join(bob, room_id)
    own, foreign = say(bob, room_id, "own"), say(alice, room_id, "foreign")
    levels = {"users": {bob.user_id: 100}}
    ok(put_state(alice, room_id, "m.room.power_levels", levels))
    await set_flags(sqlite_database, bob, suspended=True)

    for answer in (
        put_event(bob, room_id, "m.room.message", {"body": "x"}),
        put_event(bob, room_id, "m.room.redaction", {"redacts": foreign}),
        redact(bob, room_id, foreign),
        put_state(bob, room_id, "m.room.topic", {"topic": "x"}),
        membership(bob, room_id, "invite", alice),
        membership(bob, room_id, "kick", alice),
        membership(bob, other, "join"),
        bob.post(f"{V3}/join/{other}"),
        bob.post(f"{V3}/knock/{other}"),
        bob.post(f"{V3}/createRoom", {}),
        bob.put(f"{V3}/profile/{bob.user_id}/displayname", {"displayname": "x"}),
        bob.put(f"{V3}/directory/room/%23x:example.org", {"room_id": room_id}),
        bob.put(room_path(room_id, "typing", bob.user_id), {"typing": True}),
    ):
        assert refused(answer) == SUSPENDED

    assert all_texts(bob, room_id) == ["own", "foreign"]
    ok(bob.get(f"{V3}/sync"))
    ok(bob.post(room_path(room_id, "receipt", "m.read", foreign)))
    ok(bob.post(room_path(room_id, "read_markers"), {"m.fully_read": foreign}))
    ok(redact(bob, room_id, own))
    ok(put_event(bob, room_id, "m.room.redaction", {"redacts": own}))
    ok(membership(bob, other, "leave"))
    ok(membership(bob, room_id, "leave"))
    ok(membership(bob, room_id, "forget"))
    ok(bob.post(f"{V3}/logout"))


async def test_a_suspended_user_leaves_by_a_state_event(
    sqlite_database: Database, alice: User, bob: User
) -> None:
    """Some clients leave and reject invites like this; no other state event is allowed."""
    room_id, invited_to = create(alice, preset="public_chat"), create(alice, invite=[bob.user_id])
    join(bob, room_id)
    ok(put_state(alice, room_id, "m.room.power_levels", {"users": {bob.user_id: 99}}))
    await set_flags(sqlite_database, bob, suspended=True)

    def change(room_id: str, user: User, content: dict[str, Any]) -> Answer:
        return put_state(bob, room_id, "m.room.member", content, user.user_id)

    for answer in (
        change(room_id, bob, {"membership": "join", "displayname": "x"}),
        change(invited_to, bob, {"membership": "join"}),
        change(room_id, bob, {"membership": "knock"}),
        change(room_id, bob, {}),
        change(room_id, alice, {"membership": "leave"}),
        put_state(bob, room_id, "org.example", {"membership": "leave"}, bob.user_id),
        put_state(bob, room_id, "m.room.member", {"membership": "leave"}),
    ):
        assert refused(answer) == SUSPENDED
    for each in (room_id, invited_to):
        ok(
            change(
                each,
                bob,
                {"membership": "leave", "reason": "so", "org.example": "dropped by the server"},
            )
        )
        content = ok(alice.get(room_path(each, "state", "m.room.member", bob.user_id)))
        assert content == {"membership": "leave", "reason": "so"}


async def test_a_user_can_send_again_after_the_suspension(
    sqlite_database: Database, alice: User
) -> None:
    room_id = create(alice)
    await set_flags(sqlite_database, alice, suspended=True)
    assert refused(put_event(alice, room_id, "m.room.message", {})) == SUSPENDED
    await set_flags(sqlite_database, alice, suspended=False)
    say(alice, room_id, "yana")


async def test_a_locked_user_can_only_log_out(sqlite_database: Database, alice: User) -> None:
    room_id = create(alice)
    await set_flags(sqlite_database, alice, locked=True)
    for answer in (
        alice.get(f"{V3}/sync"),
        put_event(alice, room_id, "m.room.message", {}),
        membership(alice, room_id, "leave"),
        alice.get(f"{V3}/account/whoami"),
    ):
        assert refused(answer) == (401, "M_USER_LOCKED")
        assert answer.json["soft_logout"] is True
    ok(alice.post(f"{V3}/logout"))
    await set_flags(sqlite_database, alice, locked=False)
    assert refused(alice.get(f"{V3}/account/whoami")) == (401, "M_UNKNOWN_TOKEN")


async def test_a_suspended_user_can_verify_devices_and_back_up_keys(
    sqlite_database: Database, alice: User, bob: User
) -> None:
    await set_flags(sqlite_database, bob, suspended=True)

    definition = {"algorithm": "m.megolm_backup.v1.curve25519-aes-sha2", "auth_data": {}}
    version = bob.post(f"{V3}/room_keys/version", definition).json["version"]
    assert bob.put(f"{V3}/room_keys/keys?version={version}", {"rooms": {}}).status == 200
    assert bob.delete(f"{V3}/room_keys/version/{version}").status == 200
    wanted = {"one_time_keys": {bob.user_id: {bob.device_id: "signed_curve25519"}}}
    assert bob.post(f"{V3}/keys/claim", wanted).status == 200
    own: object = {"messages": {bob.user_id: {"*": {}}}}
    assert bob.put(f"{V3}/sendToDevice/m.key.verification.request/1", own).status == 200
    theirs: object = {"messages": {alice.user_id: {"*": {}}}}
    answer = bob.put(f"{V3}/sendToDevice/m.key.verification.request/2", theirs)
    assert refused(answer) == SUSPENDED
