"""Files are deleted when no event or profile refers to them any more, and not before."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.engine.database import Database
from tests.helpers.logins import password_auth
from tests.helpers.media_files import upload_uri
from tests.helpers.retention import track_references
from tests.helpers.server import TestServer, User

GRACE = 3600
CONFIG = (
    f"media_deletion: {{grace_period: {GRACE}s}}\nrc_media_create:"
    f" {{per_second: 1000, burst_count: 100000}}\n"
)
DOWNLOAD = "/_matrix/client/v1/media/download/"


@pytest.fixture
def server(tmp_path: Path, sqlite_database: Database) -> TestServer:
    return TestServer(tmp_path, sqlite_database, CONFIG)


def _room(owner: User, *others: User) -> str:
    room_id = str(
        owner.post("/_matrix/client/v3/createRoom", {"preset": "public_chat"}).json["room_id"]
    )
    for other in others:
        assert other.post(f"/_matrix/client/v3/join/{room_id}").status == 200
    return room_id


_txn = iter(range(10**9))


def _send(
    user: User, room_id: str, content: Any, type: str = "m.room.message", query: str = ""
) -> str:
    path = f"/_matrix/client/v3/rooms/{room_id}/send/{type}/{next(_txn)}{query}"
    answer = user.put(path, content)
    assert answer.status == 200, answer.body
    return str(answer.json["event_id"])


def _file(mxc: str) -> dict[str, Any]:
    return {"msgtype": "m.file", "body": "a file", "url": mxc}


def _redact(user: User, room_id: str, event_id: str) -> None:
    assert (
        user.put(f"/_matrix/client/v3/rooms/{room_id}/redact/{event_id}/{next(_txn)}", {}).status
        == 200
    )


def _wait(server: TestServer, seconds: float = GRACE) -> int:
    """Let the grace go by; how many files are deleted then."""
    track_references(server)
    server.clock.advance(seconds)
    return server.run(server.app.media.maintenance.removal.do_remove_unreferenced(1000))


def _is_there(user: User, mxc: str) -> bool:
    status = user.get(DOWNLOAD + mxc.removeprefix("mxc://")).status
    assert status in (200, 404)
    return status == 200


def _contents(tmp_path: Path) -> int:
    return sum(path.is_file() for path in (tmp_path / "media_store" / "content").rglob("*"))


def test_a_redacted_file_is_deleted_after_the_grace_period(
    server: TestServer, alice: User, tmp_path: Path
) -> None:
    room_id = _room(alice)
    kept, gone = upload_uri(alice, b"kept"), upload_uri(alice, b"gone")
    _send(alice, room_id, _file(kept))
    event_id = _send(alice, room_id, _file(gone))
    assert _wait(server) == 0
    _redact(alice, room_id, event_id)
    assert _wait(server, GRACE - 1) == 0
    assert _is_there(alice, gone)
    assert _wait(server, 1) == 1
    assert (_is_there(alice, gone), _is_there(alice, kept)) == (False, True)
    assert _contents(tmp_path) == 1
    (deletion,) = server.run(server.app.media.maintenance.removal.get_deletions(None, 10))
    assert (deletion.media_id, deletion.user_id, deletion.reason, deletion.by_user_id) == (
        gone.rpartition("/")[2],
        alice.user_id,
        "unreferenced",
        None,
    )


def test_a_file_redacted_before_it_was_tracked_is_deleted(server: TestServer, alice: User) -> None:
    room_id, gone = _room(alice), upload_uri(alice, b"oops")
    _redact(alice, room_id, _send(alice, room_id, _file(gone)))
    assert _wait(server) == 1


def test_equal_contents_stay_while_another_file_has_them(
    server: TestServer, alice: User, bob: User, tmp_path: Path
) -> None:
    room_id = _room(alice, bob)
    first, second = upload_uri(alice, b"same"), upload_uri(bob, b"same")
    events = [_send(alice, room_id, _file(first)), _send(bob, room_id, _file(second))]
    _redact(alice, room_id, events[0])
    assert _wait(server) == 1
    assert (_is_there(alice, first), _is_there(alice, second), _contents(tmp_path)) == (
        False,
        True,
        1,
    )
    _redact(bob, room_id, events[1])
    assert (_wait(server), _contents(tmp_path)) == (1, 0)


def test_edits_of_a_redacted_message_keep_no_file(
    server: TestServer, alice: User, bob: User
) -> None:
    room_id, file = _room(alice, bob), upload_uri(alice, b"x")
    event_id = _send(alice, room_id, _file(file))
    edit = {
        "m.new_content": _file(file),
        **_file(file),
        "m.relates_to": {"rel_type": "m.replace", "event_id": event_id},
    }
    _send(alice, room_id, edit)
    track_references(server)
    _redact(alice, room_id, event_id)
    assert _wait(server) == 1


def test_an_edit_by_another_user_keeps_its_file(server: TestServer, alice: User, bob: User) -> None:
    room_id, file = _room(alice, bob), upload_uri(alice, b"x")
    event_id = _send(alice, room_id, _file(file))
    theirs = _send(
        bob,
        room_id,
        {**_file(file), "m.relates_to": {"rel_type": "m.replace", "event_id": event_id}},
    )
    _redact(alice, room_id, event_id)
    assert _wait(server) == 0
    _redact(bob, room_id, theirs)
    assert _wait(server) == 1


def test_a_new_reference_restarts_the_grace_period(server: TestServer, alice: User) -> None:
    room_id, file = _room(alice), upload_uri(alice, b"x")
    _redact(alice, room_id, _send(alice, room_id, _file(file)))
    assert _wait(server, GRACE - 120) == 0
    event_id = _send(alice, room_id, _file(file))
    track_references(server)
    _redact(alice, room_id, event_id)
    assert _wait(server, GRACE - 120) == 0
    assert _wait(server, 120) == 1


def test_no_user_can_delete_files_that_another_attached_to_an_encrypted_message(
    server: TestServer, alice: User, bob: User
) -> None:
    room_id, secret = _room(alice, bob), upload_uri(alice, b"ciphertext")
    _send(
        alice, room_id, {"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "…"}, "m.room.encrypted"
    )
    _redact(bob, room_id, _send(bob, room_id, _file(secret)))
    assert _wait(server) == 0
    query = f"?attach_media={secret}"
    path = f"/_matrix/client/v3/rooms/{room_id}/send/m.room.encrypted/{next(_txn)}{query}"
    assert bob.put(path, {"ciphertext": "…"}).errcode == "M_INVALID_PARAM"
    assert _is_there(bob, secret)


@pytest.mark.parametrize("name", ["attach_media", "org.matrix.msc3911.attach_media"])
def test_attached_files_are_deleted_with_their_encrypted_message(
    server: TestServer, alice: User, name: str
) -> None:
    room_id, secret, other = (
        _room(alice),
        upload_uri(alice, b"ciphertext"),
        upload_uri(alice, b"thumbnail"),
    )
    event_id = _send(
        alice, room_id, {"ciphertext": "…"}, "m.room.encrypted", f"?{name}={secret}&{name}={other}"
    )
    assert _wait(server) == 0
    _redact(alice, room_id, event_id)
    assert _wait(server) == 2


def test_attachments_must_be_content_uris(alice: User) -> None:
    path = f"/_matrix/client/v3/rooms/{_room(alice)}/send/m.room.encrypted/t"
    for text in ("nonsense", "mxc://example.org/none", "mxc://north.example/abc"):
        assert alice.put(f"{path}?attach_media={text}", {}).errcode == "M_INVALID_PARAM"
    assert (
        alice.put(f"{path}?" + "&".join(["attach_media=mxc://a/b"] * 21), {}).errcode
        == "M_INVALID_PARAM"
    )


def test_account_data_and_profiles_keep_files(server: TestServer, alice: User) -> None:
    pack, picture = upload_uri(alice, b"sticker"), upload_uri(alice, b"picture")
    data = f"/_matrix/client/v3/user/{alice.user_id}/account_data/im.ponies.user_emotes"
    profile = f"/_matrix/client/v3/profile/{alice.user_id}/avatar_url"
    assert alice.put(data, {"images": {"cat": {"url": pack}}}).status == 200
    assert alice.put(profile, {"avatar_url": picture}).status == 200
    assert _wait(server) == 0
    assert alice.put(data, {"images": {}}).status == 200
    assert _wait(server) == 0  # messages that are encrypted may have it
    room_id = _room(alice)
    _redact(alice, room_id, _send(alice, room_id, _file(pack)))
    assert _wait(server) == 1
    assert alice.put(profile, {"avatar_url": ""}).status == 200
    assert _wait(server) == 1


def test_a_replaced_avatar_is_deleted_and_the_new_one_stays(
    server: TestServer, alice: User, bob: User
) -> None:
    """Though the room remembers the membership that showed it."""
    room_id = _room(alice, bob)
    old, new, special = (upload_uri(alice, body) for body in (b"old", b"new", b"special"))
    profile = f"/_matrix/client/v3/profile/{alice.user_id}/avatar_url"
    member = f"/_matrix/client/v3/rooms/{room_id}/state/m.room.member/{alice.user_id}"
    for picture in (old, new):
        assert alice.put(profile, {"avatar_url": picture}).status == 200
        track_references(server)
    assert bob.get(member).json["avatar_url"] == new
    assert _wait(server) == 1
    assert [_is_there(bob, picture) for picture in (old, new)] == [False, True]
    assert alice.put(member, {"membership": "join", "avatar_url": special}).status == 200
    assert alice.put(profile, {"avatar_url": ""}).status == 200
    assert _wait(server) == 2
    assert alice.post(f"/_matrix/client/v3/rooms/{room_id}/leave").status == 200
    assert _wait(server) == 0


def test_an_avatar_that_is_set_again_stays(server: TestServer, alice: User, bob: User) -> None:
    _room(alice, bob)
    one, other = upload_uri(alice, b"one"), upload_uri(alice, b"other")
    profile = f"/_matrix/client/v3/profile/{alice.user_id}/avatar_url"
    for picture in (one, other, one):
        assert alice.put(profile, {"avatar_url": picture}).status == 200
        track_references(server)
    assert _wait(server) == 1
    assert [_is_there(bob, picture) for picture in (one, other)] == [True, False]


def test_the_files_of_a_room_are_deleted_when_all_users_forgot_it(
    server: TestServer, alice: User, bob: User
) -> None:
    room_id, file = _room(alice, bob), upload_uri(alice, b"x")
    _send(alice, room_id, _file(file))
    for user in (alice, bob):
        assert _wait(server) == 0
        assert user.post(f"/_matrix/client/v3/rooms/{room_id}/leave").status == 200
        assert user.post(f"/_matrix/client/v3/rooms/{room_id}/forget").status == 200
    assert _wait(server) == 1


def _deactivate(user: User, *, erase: bool) -> None:
    auth = password_auth(user.user_id)
    path = "/_matrix/client/v3/account/deactivate"
    session = user.post(path, {"erase": erase}).json["session"]
    assert user.post(path, {"erase": erase, "auth": {**auth, "session": session}}).status == 200


def test_the_files_of_an_erased_account_are_deleted(
    server: TestServer, alice: User, bob: User
) -> None:
    room_id = _room(alice, bob)
    shown, secret, picture = (
        upload_uri(alice, body) for body in (b"shown", b"ciphertext", b"picture")
    )
    alice.put(f"/_matrix/client/v3/profile/{alice.user_id}/avatar_url", {"avatar_url": picture})
    _send(alice, room_id, _file(shown))
    _deactivate(alice, erase=True)
    assert _wait(server) == 2
    assert [_is_there(bob, file) for file in (shown, secret, picture)] == [True, False, False]


def test_a_deactivated_account_keeps_its_encrypted_files(
    server: TestServer, alice: User, bob: User
) -> None:
    _room(alice, bob)
    secret = upload_uri(alice, b"ciphertext")
    _deactivate(alice, erase=False)
    assert _wait(server) == 0
    assert _is_there(bob, secret)


def test_a_late_reference_keeps_the_file(server: TestServer, alice: User, bob: User) -> None:
    room_id, file = _room(alice, bob), upload_uri(alice, b"x")
    _redact(alice, room_id, _send(alice, room_id, _file(file)))
    track_references(server)
    server.clock.advance(GRACE)
    _send(bob, room_id, _file(file))  # nobody has looked at it when files are deleted
    assert server.run(server.app.media.maintenance.removal.do_remove_unreferenced(50)) == 0
    assert _is_there(bob, file)


def test_thumbnails_made_during_a_deletion_are_deleted(alice: User, tmp_path: Path) -> None:
    file = upload_uri(alice, b"x")
    server = alice.server
    contents = server.app.media.contents
    assert alice.delete("/_mahalla/client/v1/media/" + file.rpartition("/")[2]).status == 200
    server.run(contents.set_thumbnail(hashlib.sha256(b"x").digest(), "a", b"small", 5))
    assert [
        path for path in (tmp_path / "media_store" / "thumbnails").rglob("*") if path.is_file()
    ] == []


def test_uploaders_see_and_delete_their_files(alice: User, bob: User, tmp_path: Path) -> None:
    first, second = upload_uri(alice, b"one"), upload_uri(alice, b"three")
    ids = [mxc.rpartition("/")[2] for mxc in (first, second)]
    page = alice.get("/_mahalla/client/v1/media?limit=1").json
    assert (page["total"], page["total_size"], page["next_token"]) == (2, 8, 1)
    assert bob.get("/_mahalla/client/v1/media").json["media"] == []
    assert bob.delete(f"/_mahalla/client/v1/media/{ids[0]}").status == 404
    assert alice.delete(f"/_mahalla/client/v1/media/{ids[0]}").json == {"deleted": [ids[0]]}
    assert alice.delete(f"/_mahalla/client/v1/media/{ids[0]}").status == 404
    assert [each["media_id"] for each in alice.get("/_mahalla/client/v1/media").json["media"]] == [
        ids[1]
    ]
    assert _contents(tmp_path) == 1


# A model: random histories, and references counted from scratch.


@dataclass
class _Event:
    sender: int
    files: frozenset[int]
    edits: int | None = None
    event_id: str = ""
    redacted: bool = False


@dataclass
class _Model:
    uploaders: list[int] = field(default_factory=list)
    events: list[_Event] = field(default_factory=list)
    data: dict[int, frozenset[int]] = field(default_factory=dict)
    pictures: dict[int, frozenset[int]] = field(default_factory=dict)
    by_uploader: set[int] = field(default_factory=set)

    def referred(self) -> set[int]:
        counted = [
            event.files
            for event in self.events
            if not event.redacted
            and not (
                event.edits is not None
                and self.events[event.edits].redacted
                and self.events[event.edits].sender == event.sender
            )
        ]
        return set().union(*counted, *self.data.values(), *self.pictures.values())

    def refer(self, user: int, files: frozenset[int]) -> None:
        self.by_uploader |= {file for file in files if self.uploaders[file] == user}


_STEP = st.tuples(
    st.sampled_from(
        ["upload", "send", "send", "edit", "redact", "redact", "avatar", "data", "look", "wait"]
    ),
    st.integers(0, 1),
    st.integers(0, 30),
    st.integers(0, 30),
)


@pytest.fixture
def scenario(tmp_path: Path, sqlite_database: Database) -> tuple[TestServer, list[User], str]:
    server = TestServer(tmp_path, sqlite_database, CONFIG)
    users = [server.register("alice"), server.register("bob")]
    return server, users, _room(*users)


@given(steps=st.lists(_STEP, min_size=8, max_size=30))
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_exactly_the_unreferenced_files_are_deleted(
    scenario: tuple[TestServer, list[User], str], steps: list[tuple[str, int, int, int]]
) -> None:
    server, users, room_id = scenario
    model = _Model()
    addresses: list[str] = []
    gone: set[int] = set()

    def upload(user: int) -> None:
        addresses.append(upload_uri(users[user], f"{next(_txn) // 2}".encode()))
        model.uploaders.append(user)

    def due() -> None:
        _wait(server)
        gone.update(set(range(len(addresses))) & model.by_uploader - model.referred())

    upload(0)
    upload(1)
    for verb, user, one, two in steps:
        files = frozenset({one % len(addresses), two % len(addresses)}) - gone
        if verb == "upload":
            upload(user)
        elif verb == "send":
            content = {
                "body": " ".join(addresses[file] for file in sorted(files)),
                "msgtype": "m.text",
            }
            model.events.append(_Event(user, files, event_id=_send(users[user], room_id, content)))
            model.refer(user, files)
        elif verb == "edit" and model.events:
            target = one % len(model.events)
            if (
                model.events[target].redacted
                or model.events[target].edits is not None
                or not model.events[target].event_id
            ):
                continue
            relation = {"rel_type": "m.replace", "event_id": model.events[target].event_id}
            new = {"body": " ".join(addresses[file] for file in sorted(files)), "msgtype": "m.text"}
            edit: dict[str, Any] = {
                "body": "*",
                "msgtype": "m.text",
                "m.new_content": new,
                "m.relates_to": relation,
            }
            model.events.append(_Event(user, files, target, _send(users[user], room_id, edit)))
            model.refer(user, files)
        elif verb == "redact" and model.events:
            event = model.events[one % len(model.events)]
            if not event.redacted and event.event_id:
                _redact(users[event.sender], room_id, event.event_id)
                event.redacted = True
        elif verb == "avatar" and files:
            file = min(files)  # profile and membership refer to it until they have another
            path = f"/_matrix/client/v3/profile/{users[user].user_id}/avatar_url"
            assert users[user].put(path, {"avatar_url": addresses[file]}).status == 200
            model.pictures[user] = frozenset({file})
            model.refer(user, frozenset({file}))
        elif verb == "data":
            data = {"pack": [addresses[file] for file in sorted(files)]}
            path = f"/_matrix/client/v3/user/{users[user].user_id}/account_data/pack"
            assert users[user].put(path, data).status == 200
            model.data[user] = files
        elif verb == "look":
            track_references(server)
        elif verb == "wait":
            due()
    for user in (0, 1):  # the next example begins with nothing in the settings
        path = f"/_matrix/client/v3/user/{users[user].user_id}/account_data/pack"
        assert users[user].put(path, {}).status == 200
        model.data.pop(user, None)
    due()
    assert {
        file for file, address in enumerate(addresses) if not _is_there(users[0], address)
    } == gone


def test_files_above_the_maximum_age_are_deleted_though_they_are_read(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(
        tmp_path, sqlite_database, CONFIG + "media_retention: {local_media_max_age: 10d}\n"
    )
    alice = server.register("alice")
    old, kept = upload_uri(alice, b"old"), upload_uri(alice, b"protected")
    sql = "UPDATE media SET protected = 1 WHERE media_id = ?"
    server.run(
        server.app.database.write("t", lambda txn: txn.execute(sql, (kept.rpartition("/")[2],)))
    )
    server.app.jobs.start()
    for days in (5, 4):
        server.clock.advance(days * 24 * 3600)
        assert alice.get(DOWNLOAD + old.removeprefix("mxc://")).status == 200
    young = upload_uri(alice, b"young")
    server.clock.advance(24 * 3600 + 1)
    server.clock.advance(601)
    assert alice.get(DOWNLOAD + old.removeprefix("mxc://")).status == 404
    assert [alice.get(DOWNLOAD + each.removeprefix("mxc://")).status for each in (kept, young)] == [
        200,
        200,
    ]
    (noted,) = server.run(server.app.media.maintenance.removal.get_deletions(None, 10))
    assert (noted.media_id, noted.reason) == (old.rpartition("/")[2], "age")
