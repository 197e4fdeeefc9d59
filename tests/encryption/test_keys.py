"""Keys for end-to-end encryption over HTTP: uploaded, queried, claimed once, signed, and announced
in /sync."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation.protocol.errors import UnknownToken
from federation.protocol.ids import DeviceID, UserID
from homeserver.api.requester import Requester
from homeserver.services.encryption.device_keys import KeyUpload
from homeserver.services.encryption.one_time_key_counts import OneTimeKeyCounts
from storage.encryption.device_keys import DeviceKeyStore, KeyCounts
from storage.engine.database import Database, SQLiteConfig
from storage.engine.streams import Change, Stage
from tests.helpers.databases import open_inline
from tests.helpers.encrypted_rooms import ENCRYPTION_EVENT
from tests.helpers.keys import (
    V3,
    claim,
    cross_signing_key,
    identity_keys,
    one_time_keys,
    query,
    sync,
    upload,
)
from tests.helpers.logins import password_auth
from tests.helpers.server import TestServer, User


def encrypted_room(creator: User, *others: User) -> str:
    room_id: str = creator.post(
        f"{V3}/createRoom", {"preset": "public_chat", "initial_state": [ENCRYPTION_EVENT]}
    ).json["room_id"]
    for other in others:
        assert other.post(f"{V3}/join/{room_id}", {}).status == 200
    return room_id


def test_uploaded_keys_are_returned_as_they_were_signed(alice: User, bob: User) -> None:
    _, keys = identity_keys(alice)
    upload(alice, device_keys=keys)
    found = query(bob, alice)["device_keys"][alice.user_id][alice.device_id]
    assert {key: value for key, value in found.items() if key != "unsigned"} == keys


@pytest.mark.parametrize("field", ["user_id", "device_id"])
def test_a_user_can_upload_keys_only_for_their_own_device(alice: User, field: str) -> None:
    _, keys = identity_keys(alice)
    answer = alice.post(f"{V3}/keys/upload", {"device_keys": {**keys, field: "other"}})
    assert (answer.status, answer.errcode) == (400, "M_INVALID_PARAM")


def test_a_one_time_key_is_claimed_once_then_the_fallback_key(alice: User, bob: User) -> None:
    assert upload(alice, one_time_keys=one_time_keys("a", "b")) == {"signed_curve25519": 2}
    fallback = {"signed_curve25519:f": {"key": "f", "fallback": True, "signatures": {}}}
    upload(alice, fallback_keys=fallback)
    answer = sync(alice)
    assert answer["device_one_time_keys_count"] == {"signed_curve25519": 2}
    assert answer["device_unused_fallback_key_types"] == ["signed_curve25519"]
    claimed = [next(iter(claim(bob, alice))) for _ in range(4)]
    assert claimed == ["signed_curve25519:" + name for name in ("a", "b", "f", "f")]
    answer = sync(alice, answer["next_batch"])
    assert answer["device_one_time_keys_count"] == {"signed_curve25519": 0}, (
        "clients take a missing algorithm as unchanged"
    )
    assert answer["device_unused_fallback_key_types"] == []


def test_a_claim_from_a_device_without_keys_returns_nothing(alice: User, bob: User) -> None:
    assert claim(bob, alice) is None


def test_a_repeated_upload_is_no_error_but_other_keys_with_the_same_id_are(alice: User) -> None:
    upload(alice, one_time_keys=one_time_keys("a"))
    assert upload(alice, one_time_keys=one_time_keys("a")) == {"signed_curve25519": 1}
    other = {"signed_curve25519:a": {"key": "another", "signatures": {}}}
    assert alice.post(f"{V3}/keys/upload", {"one_time_keys": other}).status == 400


def test_a_claimed_key_is_not_published_again_by_a_repeated_upload(alice: User, bob: User) -> None:
    upload(alice, one_time_keys=one_time_keys("a", "b"))
    assert list(claim(bob, alice)) == ["signed_curve25519:a"]
    assert upload(alice, one_time_keys=one_time_keys("a", "b")) == {"signed_curve25519": 1}
    assert upload(alice, one_time_keys=one_time_keys("a", "b", "c")) == {"signed_curve25519": 2}
    claimed = [claim(bob, alice) for _ in range(3)]
    assert [None if key is None else list(key) for key in claimed] == [
        ["signed_curve25519:b"],
        ["signed_curve25519:c"],
        None,
    ]
    new_keys = {"signed_curve25519:a": {"key": "of a new identity", "signatures": {}}}
    assert upload(alice, one_time_keys=new_keys) == {"signed_curve25519": 1}, (
        "a client with new identity keys counts from the start"
    )
    assert claim(bob, alice) == new_keys


def test_a_repeated_upload_restores_no_claimed_key_even_after_later_uploads(
    alice: User, bob: User
) -> None:
    upload(alice, one_time_keys=one_time_keys("a", "b"))
    assert list(claim(bob, alice)) == ["signed_curve25519:a"]
    upload(alice, one_time_keys=one_time_keys("c", "d"))
    assert list(claim(bob, alice)) == ["signed_curve25519:b"]
    assert upload(alice, one_time_keys=one_time_keys("a", "b")) == {"signed_curve25519": 2}
    claimed = [claim(bob, alice) for _ in range(3)]
    assert [None if key is None else list(key) for key in claimed] == [
        ["signed_curve25519:c"],
        ["signed_curve25519:d"],
        None,
    ]


def test_keys_are_claimed_in_upload_order(alice: User, bob: User) -> None:
    for name in ("z", "m", "a"):
        upload(alice, one_time_keys=one_time_keys(name))
    assert [list(claim(bob, alice)) for _ in range(3)] == [
        [f"signed_curve25519:{name}"] for name in "zma"
    ]


def test_numbers_and_sizes_of_keys_are_bounded(alice: User) -> None:
    large = {"signed_curve25519:a": {"key": "x" * 5000}}
    for body in ({"one_time_keys": large}, {"fallback_keys": large}):
        answer = alice.post(f"{V3}/keys/upload", body)
        assert (answer.status, answer.errcode) == (400, "M_INVALID_PARAM")
    _, identity = identity_keys(alice)
    answer = alice.post(
        f"{V3}/keys/upload", {"device_keys": {**identity, "org.example": "x" * 70_000}}
    )
    assert (answer.status, answer.errcode) == (400, "M_INVALID_PARAM")
    for first in (0, 500):
        upload(
            alice,
            one_time_keys=one_time_keys(*(f"k{number}" for number in range(first, first + 500))),
        )
    answer = alice.post(f"{V3}/keys/upload", {"one_time_keys": one_time_keys("more")})
    assert (answer.status, answer.errcode) == (400, "M_INVALID_PARAM")
    for number in range(10):
        upload(alice, fallback_keys={f"algorithm{number}:f": "key"})
    answer = alice.post(f"{V3}/keys/upload", {"fallback_keys": {"algorithm10:f": "key"}})
    assert (answer.status, answer.errcode) == (400, "M_INVALID_PARAM")
    assert sync(alice)["device_one_time_keys_count"] == {"signed_curve25519": 1000}


def test_a_device_has_one_time_keys_of_few_algorithms(alice: User) -> None:
    upload(alice, one_time_keys={f"algorithm{number}:a": "key" for number in range(10)})
    answer = alice.post(f"{V3}/keys/upload", {"one_time_keys": {"algorithm10:a": "key"}})
    assert (answer.status, answer.errcode) == (400, "M_INVALID_PARAM")
    upload(alice, one_time_keys={"algorithm9:b": "key"})


async def test_an_upload_that_a_logout_overtakes_stores_no_keys(
    server: TestServer, alice: User, bob: User
) -> None:
    caller = Requester(UserID(alice.user_id), DeviceID(alice.device_id), 0)
    assert alice.post(f"{V3}/logout").status == 200
    keys = server.app.devices.device_keys
    with pytest.raises(UnknownToken):
        await keys.do_upload(caller, KeyUpload(device_keys=identity_keys(alice)[1]))
    assert query(bob, alice)["device_keys"][alice.user_id] == {}


def test_a_device_without_keys_gets_a_zero_count(alice: User) -> None:
    assert upload(alice) == {"signed_curve25519": 0}
    assert sync(alice)["device_one_time_keys_count"] == {"signed_curve25519": 0}


def test_users_in_a_shared_encrypted_room_are_in_changed(alice: User, bob: User) -> None:
    encrypted_room(alice, bob)
    since = sync(alice)["next_batch"]
    upload(bob, device_keys=identity_keys(bob)[1])
    answer = sync(alice, since)
    assert answer["device_lists"] == {"changed": [bob.user_id], "left": []}
    assert sync(alice, answer["next_batch"])["device_lists"] == {"changed": [], "left": []}


def test_users_without_a_shared_encrypted_room_are_not_in_changed(alice: User, bob: User) -> None:
    room_id = alice.post(f"{V3}/createRoom", {"preset": "public_chat"}).json["room_id"]
    bob.post(f"{V3}/join/{room_id}", {})
    since = sync(alice)["next_batch"]
    upload(bob, device_keys=identity_keys(bob)[1])
    assert sync(alice, since)["device_lists"]["changed"] == []
    answer = alice.put(
        f"{V3}/rooms/{room_id}/state/m.room.encryption/", ENCRYPTION_EVENT["content"]
    )
    assert answer.status == 200
    assert sync(alice, since)["device_lists"]["changed"] == [bob.user_id]


def test_joining_and_leaving_users_are_in_changed_and_left(alice: User, bob: User) -> None:
    room_id = encrypted_room(alice)
    start = sync(alice)["next_batch"]
    bob.post(f"{V3}/join/{room_id}", {})
    joined = sync(alice, start)
    assert joined["device_lists"] == {"changed": [bob.user_id], "left": []}
    assert alice.user_id in sync(bob)["rooms"]["join"][room_id]["summary"].get(
        "m.heroes", [alice.user_id]
    )
    bob.post(f"{V3}/rooms/{room_id}/leave", {})
    left = sync(alice, joined["next_batch"])
    assert left["device_lists"] == {"changed": [], "left": [bob.user_id]}
    changes = alice.get(f"{V3}/keys/changes?from={start}&to={left['next_batch']}").json
    assert changes == {"changed": [], "left": []}, "a user who joined and left is as before"


def test_a_device_change_wakes_waiting_syncs(server: TestServer, alice: User, bob: User) -> None:
    encrypted_room(alice, bob)
    since = sync(alice)["next_batch"]
    pending = alice.start("GET", f"{V3}/sync?since={since}&timeout=30000")
    was_done = pending.done
    upload(bob, device_keys=identity_keys(bob)[1])
    for _ in range(3):
        server.clock.advance(0)
    assert (was_done, pending.done) == (False, True)
    assert pending.answer.json["device_lists"]["changed"] == [bob.user_id]


def test_a_device_is_signed_with_cross_signing_keys(alice: User, bob: User) -> None:
    _, device = identity_keys(alice)
    upload(alice, device_keys=device)
    master, master_json = cross_signing_key(alice, "master", 2)
    self_signing, self_json = cross_signing_key(alice, "self_signing", 3, master)
    user_signing, user_json = cross_signing_key(alice, "user_signing", 4, master)
    keys = {"master_key": master_json, "self_signing_key": self_json, "user_signing_key": user_json}
    assert alice.post(f"{V3}/keys/device_signing/upload", keys).status == 200, (
        "the first keys need no confirmation"
    )
    assert alice.post(f"{V3}/keys/device_signing/upload", keys).status == 200, (
        "nor do unchanged keys"
    )
    found = query(alice, alice)
    assert found["master_keys"][alice.user_id] == master_json
    assert found["user_signing_keys"][alice.user_id] == user_json
    assert "user_signing_keys" not in query(bob, alice)

    bare = {key: value for key, value in device.items() if key != "signatures"}
    signed = self_signing.sign(bare, alice)
    answer = alice.post(f"{V3}/keys/signatures/upload", {alice.user_id: {alice.device_id: signed}})
    assert answer.json == {"failures": {}}
    seen = query(bob, alice)["device_keys"][alice.user_id][alice.device_id]["signatures"][
        alice.user_id
    ]
    assert seen == {**device["signatures"][alice.user_id], **signed["signatures"][alice.user_id]}

    _, bobs_master = cross_signing_key(bob, "master", 5)
    bob.post(f"{V3}/keys/device_signing/upload", {"master_key": bobs_master})
    public = next(iter(bobs_master["keys"].values()))
    vouched = user_signing.sign(bobs_master, alice)
    assert alice.post(f"{V3}/keys/signatures/upload", {bob.user_id: {public: vouched}}).json == {
        "failures": {}
    }
    assert alice.user_id in query(alice, bob)["master_keys"][bob.user_id]["signatures"]
    assert "signatures" not in query(bob, bob)["master_keys"][bob.user_id], (
        "a signature of another user belongs to that user"
    )


def test_a_malformed_user_id_has_no_keys(alice: User) -> None:
    answer = alice.post(f"{V3}/keys/query", {"device_keys": {"nobody": [], alice.user_id: []}})
    assert answer.json == {"device_keys": {alice.user_id: {}}, "failures": {}}
    answer = alice.post(
        f"{V3}/keys/claim", {"one_time_keys": {"nobody": {"PHONE": "signed_curve25519"}}}
    )
    assert answer.json == {"one_time_keys": {}, "failures": {}}


def test_no_device_has_the_name_of_a_cross_signing_key(server: TestServer, alice: User) -> None:
    _, master = cross_signing_key(alice, "master", 2)
    assert alice.post(f"{V3}/keys/device_signing/upload", {"master_key": master}).status == 200
    (public,) = master["keys"].values()
    login = {**password_auth(alice.user_id), "device_id": public}
    answer = server.post(f"{V3}/login", login)
    assert (answer.status, answer.errcode) == (403, "M_FORBIDDEN")


def test_signatures_of_other_users_keys_are_visible_only_to_the_signer(
    server: TestServer, alice: User, bob: User
) -> None:
    carol = server.register("carol")
    second = User(
        server,
        server.post(
            f"{V3}/login",
            password_auth(alice.user_id),
        ).json,
    )
    encrypted_room(alice, bob, carol)
    _, device = identity_keys(alice)
    upload(alice, device_keys=device)
    master, master_json = cross_signing_key(alice, "master", 2)
    self_signing, self_json = cross_signing_key(alice, "self_signing", 3, master)
    user_signing, user_json = cross_signing_key(alice, "user_signing", 4, master)
    keys = {"master_key": master_json, "self_signing_key": self_json, "user_signing_key": user_json}
    assert alice.post(f"{V3}/keys/device_signing/upload", keys).status == 200
    _, bobs_master = cross_signing_key(bob, "master", 5)
    assert bob.post(f"{V3}/keys/device_signing/upload", {"master_key": bobs_master}).status == 200
    people = (alice, second, bob, carol)
    since = [sync(user)["next_batch"] for user in people]
    waiting = second.start("GET", f"{V3}/sync?since={since[1]}&timeout=30000")

    vouched = {
        bob.user_id: {
            next(iter(bobs_master["keys"].values())): user_signing.sign(bobs_master, alice)
        }
    }
    assert alice.post(f"{V3}/keys/signatures/upload", vouched).json == {"failures": {}}
    for _ in range(3):
        server.clock.advance(0)
    assert waiting.done, "all devices of the signer are notified at once"
    answers = [sync(user, token) for user, token in zip(people, since, strict=True)]
    assert [answer["device_lists"]["changed"] for answer in answers] == [
        [bob.user_id],
        [bob.user_id],
        [],
        [],
    ]

    since = [answer["next_batch"] for answer in answers]
    signed = self_signing.sign(
        {key: value for key, value in device.items() if key != "signatures"}, alice
    )
    for expected in ([alice.user_id], []):  # a repeated signature is no change
        answer = alice.post(
            f"{V3}/keys/signatures/upload", {alice.user_id: {alice.device_id: signed}}
        )
        assert answer.json == {"failures": {}}
        answers = [sync(user, token) for user, token in zip(people, since, strict=True)]
        assert [answer["device_lists"]["changed"] for answer in answers] == [expected] * 4
        since = [answer["next_batch"] for answer in answers]


def test_a_client_that_was_away_for_long_gets_its_own_users_signatures(
    tmp_path: Path, server: TestServer, sqlite_database: Database, alice: User, bob: User
) -> None:
    master, master_json = cross_signing_key(alice, "master", 2)
    user_signing, user_json = cross_signing_key(alice, "user_signing", 4, master)
    keys = {"master_key": master_json, "user_signing_key": user_json}
    assert alice.post(f"{V3}/keys/device_signing/upload", keys).status == 200
    _, bobs_master = cross_signing_key(bob, "master", 5)
    assert bob.post(f"{V3}/keys/device_signing/upload", {"master_key": bobs_master}).status == 200
    since = sync(alice)["next_batch"]
    vouched = {
        bob.user_id: {
            next(iter(bobs_master["keys"].values())): user_signing.sign(bobs_master, alice)
        }
    }
    assert alice.post(f"{V3}/keys/signatures/upload", vouched).json == {"failures": {}}
    alice.server = TestServer(tmp_path, sqlite_database, seed=2, now=server.clock.seconds() + 1)
    assert sync(alice, since)["device_lists"]["changed"] == [bob.user_id]


def test_adding_or_changing_cross_signing_keys_needs_confirmation(
    alice: User,
) -> None:
    master, master_json = cross_signing_key(alice, "master", 2)
    _, self_json = cross_signing_key(alice, "self_signing", 3, master)
    path = f"{V3}/keys/device_signing/upload"
    assert alice.post(path, {"master_key": master_json}).status == 200
    assert alice.post(path, {"master_key": master_json}).status == 200
    assert alice.post(path, {"self_signing_key": self_json}).status == 401, "an additional key"
    assert (
        alice.post(path, {"master_key": master_json, "self_signing_key": self_json}).status == 401
    )
    assert (
        alice.post(path, {"master_key": {**master_json, "usage": ["master", "org.example"]}}).status
        == 401
    )
    device, _ = identity_keys(alice)
    signed = device.sign(master_json, alice)
    assert alice.post(path, {"master_key": signed}).status == 200, (
        "the same key with another signature"
    )
    assert query(alice, alice)["master_keys"][alice.user_id] == signed
    assert "self_signing_keys" not in query(alice, alice)


def test_replacing_cross_signing_keys_needs_confirmation(alice: User) -> None:
    for seed in (2, 3):
        _, master = cross_signing_key(alice, "master", seed)
        answer = alice.post(f"{V3}/keys/device_signing/upload", {"master_key": master})
        assert answer.status == (200 if seed == 2 else 401)
    auth = {**password_auth(alice.user_id), "session": answer.json["session"]}
    assert (
        alice.post(f"{V3}/keys/device_signing/upload", {"master_key": master, "auth": auth}).status
        == 200
    )


def test_keys_without_a_signature_by_the_master_key_are_refused(alice: User) -> None:
    _, master = cross_signing_key(alice, "master", 2)
    stranger, _ = cross_signing_key(alice, "master", 9)
    _, unsigned = cross_signing_key(alice, "self_signing", 3)
    _, wrongly = cross_signing_key(alice, "self_signing", 3, stranger)
    for key in (unsigned, wrongly):
        answer = alice.post(
            f"{V3}/keys/device_signing/upload", {"master_key": master, "self_signing_key": key}
        )
        assert (answer.status, answer.errcode) == (400, "M_INVALID_SIGNATURE")
    answer = alice.post(f"{V3}/keys/device_signing/upload", {"self_signing_key": unsigned})
    assert (answer.status, answer.errcode) == (400, "M_MISSING_PARAM")


def test_invalid_signatures_are_reported_and_not_stored(alice: User, bob: User) -> None:
    _, device = identity_keys(alice)
    upload(alice, device_keys=device)
    stranger, _ = cross_signing_key(bob, "self_signing", 7)
    signed = stranger.sign(
        {key: value for key, value in device.items() if key != "signatures"}, alice
    )
    answer = alice.post(
        f"{V3}/keys/signatures/upload", {alice.user_id: {alice.device_id: signed, "NONE": signed}}
    )
    failures = answer.json["failures"][alice.user_id]
    assert set(failures) == {alice.device_id, "NONE"}
    assert (
        query(bob, alice)["device_keys"][alice.user_id][alice.device_id]["signatures"]
        == device["signatures"]
    )


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    "keys",
                    "other keys",
                    "fallback",
                    "claim",
                    "claim other",
                    "sync",
                    "elsewhere",
                    "leave",
                ]
            ),
            st.sampled_from([0, 1]),
        ),
        max_size=20,
    )
)
def test_cached_key_counts_match_the_database(
    server: TestServer, steps: list[tuple[str, int]]
) -> None:
    """Counts of two devices of one user, after uploads and claims, some of them on another node."""
    names = iter(f"k{number}" for number in count())
    alice, bob = server.register(f"alice{uuid4().hex}"), server.register(f"bob{uuid4().hex}")
    login = password_auth(bob.user_id)
    devices = [bob, User(server, server.post(f"{V3}/login", login).json)]
    store = DeviceKeyStore(server.app.database)
    for step, at in steps:
        device = devices[at]
        requested = {
            bob.user_id: {
                device.device_id: "other" if step == "claim other" else "signed_curve25519"
            }
        }
        match step:
            case "keys":
                upload(device, one_time_keys=one_time_keys(next(names), next(names)))
            case "other keys":
                upload(
                    device,
                    one_time_keys={
                        f"other:{next(names)}": "key",
                        f"signed_curve25519:{next(names)}": "key",
                    },
                )
            case "fallback":
                upload(
                    device,
                    fallback_keys={
                        f"signed_curve25519:{next(names)}": {"key": "f", "fallback": True}
                    },
                )
            case "claim" | "claim other":
                assert alice.post(f"{V3}/keys/claim", {"one_time_keys": requested}).status == 200
            case "elsewhere":
                server.app.database.streams.advance_to(server.app.database.streams.current() + 1)
            case "leave":
                body = {"auth": {**login, "user": bob.user_id}, "devices": [devices[1].device_id]}
                assert devices[0].post(f"{V3}/delete_devices", body).status == 200
                devices[1] = User(server, server.post(f"{V3}/login", login).json)
        for each in devices:
            left, _ = server.run(store.get_counts(bob.user_id, each.device_id))
            answer = sync(each)
            counts = {"signed_curve25519": 0, **left.one_time}
            assert answer["device_one_time_keys_count"] == counts
            assert answer["device_unused_fallback_key_types"] == left.unused_fallback


class ClaimedMeanwhile(DeviceKeyStore):
    """While it reads the counts, a key is claimed, and the cache sees that before the result."""

    def __init__(self, database: Database, claim: Callable[[], None]) -> None:
        super().__init__(database)
        self._claim = claim
        self.reads = 0

    async def get_counts(self, user_id: str, device_id: str) -> tuple[KeyCounts, int]:
        self.reads += 1
        assert self.reads < 10, "it reads again and again"
        answer = await super().get_counts(user_id, device_id)
        self._claim()
        return answer


@pytest.mark.parametrize("elsewhere", [False, True])
def test_claims_during_a_read_are_counted_and_do_not_block_the_response(
    server: TestServer, sqlite: SQLiteConfig, bob: User, elsewhere: bool
) -> None:
    """A server with constant claims still answers, and caches nothing out of date."""
    upload(bob, one_time_keys=one_time_keys("a", "b", "c", "d"))
    database = server.app.database
    other = open_inline(sqlite)
    received: list[Change] = []
    other.streams.subscribe(received.extend, stage=Stage.NOTIFY)
    requested = (bob.user_id, bob.device_id, "signed_curve25519")

    def claim() -> None:
        server.run(DeviceKeyStore(other).claim_in_chunks([requested], 0))
        if elsewhere:
            database.streams.advance_to(received[-1].position)
        else:
            database.streams.publish(received, received[-1].position)
        received.clear()

    store = ClaimedMeanwhile(database, claim)
    counts = OneTimeKeyCounts(streams=database.streams, keys=store, capacity=10)
    for left in (4, 3, 2):
        assert server.run(counts.get(bob.user_id, bob.device_id)).one_time == {requested[2]: left}
    assert store.reads == 3
    server.run(other.close())
