"""A client that got a typing user before a restart gets the end after it, in both kinds of sync.
What the client got is only in its token."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from federation.protocol.ids import RoomID
from homeserver.services.streams.sync_tokens import (
    MAX_TYPING_ROOMS,
    SyncToken,
    parse_sync_token,
    split_pos,
)
from storage.engine.database import Database
from tests.helpers.room_actions import create, say
from tests.helpers.server import TestServer, User
from tests.helpers.sliding_client import SlidingClient, a_list, act

NO_TYPING = quote('{"room":{"ephemeral":{"not_types":["m.typing"]}}}')


class RestartableServer:
    """Alice and Bob on a server that can restart."""

    def __init__(self, folder: Path, database: Database) -> None:
        self._folder, self._database, self._begun = folder, database, 1
        self.server = TestServer(folder, database, seed=1)
        self.alice, self.bob = self.server.register("alice"), self.server.register("bob")

    def room(self) -> str:
        room_id = create(self.bob, preset="public_chat")
        act(self.alice, room_id, "join")
        return room_id

    def begin_anew(self) -> None:
        """Restart: the server keeps only the database."""
        seconds = self.server.clock.seconds()
        self._begun += 1
        self.server = TestServer(self._folder, self._database, seed=self._begun, now=seconds + 1)
        self.alice.server = self.bob.server = self.server

    def number_of(self, room_id: str) -> int:
        return self.server.run(
            self.server.app.room_engine.engine.get_snapshot(RoomID(room_id))
        ).room.room_nid

    def type(self, room_id: str, *, typing: bool = True) -> None:
        path = f"/_matrix/client/v3/rooms/{room_id}/typing/{self.bob.user_id}"
        assert self.bob.put(path, {"typing": typing, "timeout": 20000}).status == 200


@pytest.fixture
def place(tmp_path: Path, database: Database) -> RestartableServer:
    return RestartableServer(tmp_path, database)


def sync(user: User, since: str = "", **query: str) -> Any:
    fields = "".join(f"&{name}={value}" for name, value in query.items())
    answer = user.get(f"/_matrix/client/v3/sync?{since and 'since=' + since}{fields}")
    assert answer.status == 200, answer.body
    return answer.json


def typing(answer: Any) -> dict[str, list[str]]:
    """Typing users by room in a /sync response."""
    return {
        room_id: event["content"]["user_ids"]
        for room_id, room in answer.get("rooms", {}).get("join", {}).items()
        for event in room["ephemeral"]["events"]
        if event["type"] == "m.typing"
    }


def test_sync_sends_the_end_of_typing_after_a_restart(place: RestartableServer) -> None:
    typed, other = place.room(), place.room()
    since = sync(place.alice)["next_batch"]
    place.type(typed)
    answer = sync(place.alice, since)
    assert typing(answer) == {typed: [place.bob.user_id]}
    say(place.bob, other, "alone")
    answer = sync(place.alice, answer["next_batch"])
    assert other in answer["rooms"]["join"]

    place.begin_anew()

    answer = sync(place.alice, answer["next_batch"])
    assert typing(answer) == {typed: []}
    repeated = sync(place.alice, answer["next_batch"])
    assert "rooms" not in repeated
    assert repeated["next_batch"] == answer["next_batch"]
    place.type(typed)
    assert typing(sync(place.alice, repeated["next_batch"])) == {typed: [place.bob.user_id]}


def test_initial_and_waiting_syncs_have_typing_after_a_restart(place: RestartableServer) -> None:
    room_id = place.room()
    place.type(room_id)
    first = sync(place.alice)
    assert typing(first) == {room_id: [place.bob.user_id]}

    place.begin_anew()

    waiting = place.alice.start(
        "GET", f"/_matrix/client/v3/sync?since={first['next_batch']}&timeout=30000"
    )
    assert waiting.done
    assert typing(waiting.answer.json) == {room_id: []}
    waiting = place.alice.start(
        "GET", f"/_matrix/client/v3/sync?since={waiting.answer.json['next_batch']}&timeout=30000"
    )
    assert not waiting.done


def test_a_user_who_continues_typing_stays_typing(place: RestartableServer) -> None:
    room_id = place.room()
    place.type(room_id)
    since = sync(place.alice)["next_batch"]
    place.begin_anew()
    place.type(room_id)
    assert typing(sync(place.alice, since)) == {room_id: [place.bob.user_id]}


def test_an_end_before_the_restart_is_not_repeated(place: RestartableServer) -> None:
    room_id = place.room()
    place.type(room_id)
    since = sync(place.alice)["next_batch"]
    place.type(room_id, typing=False)
    answer = sync(place.alice, since)
    assert typing(answer) == {room_id: []}
    place.begin_anew()
    assert typing(sync(place.alice, answer["next_batch"])) == {}


def test_a_filter_without_typing_hides_the_end(place: RestartableServer) -> None:
    room_id = place.room()
    since = sync(place.alice, filter=NO_TYPING)["next_batch"]
    place.type(room_id)
    answer = sync(place.alice, since, filter=NO_TYPING)
    place.begin_anew()
    assert typing(sync(place.alice, answer["next_batch"], filter=NO_TYPING)) == {}


def test_the_end_of_typing_in_a_left_room_is_not_sent(place: RestartableServer) -> None:
    room_id = place.room()
    place.type(room_id)
    since = sync(place.alice)["next_batch"]
    place.begin_anew()
    act(place.alice, room_id, "leave")
    answer = sync(place.alice, since)
    assert typing(answer) == {}
    assert "rooms" not in sync(place.alice, answer["next_batch"])


def test_sliding_sync_sends_the_end_of_typing_after_a_restart(place: RestartableServer) -> None:
    typed, other = place.room(), place.room()
    lists = {"all": a_list([0, 9])}
    client = SlidingClient(place.alice, lists=lists, extensions={"typing": {"enabled": True}})
    client.sync()
    place.type(typed)

    def received() -> dict[str, list[str]]:
        rooms = client.sync()["extensions"]["typing"]["rooms"]
        return {room_id: event["content"]["user_ids"] for room_id, event in rooms.items()}

    assert received() == {typed: [place.bob.user_id]}
    say(place.bob, other, "alone")
    assert received() == {}

    place.begin_anew()
    client.user.server = place.server

    waiting = client.wait()
    assert waiting.done
    rooms = waiting.answer.json["extensions"]["typing"]["rooms"]
    assert {room_id: event["content"]["user_ids"] for room_id, event in rooms.items()} == {
        typed: []
    }
    client.pos = waiting.answer.json["pos"]
    assert received() == {}
    place.type(typed)
    assert received() == {typed: [place.bob.user_id]}


def test_a_token_stays_short(place: RestartableServer) -> None:
    rooms = [place.room() for _ in range(MAX_TYPING_ROOMS + 3)]
    for room_id in rooms:
        place.type(room_id)
    since = sync(place.alice)["next_batch"]
    assert len(parse_sync_token(since).typing_rooms) == MAX_TYPING_ROOMS
    place.begin_anew()
    assert len(typing(sync(place.alice, since))) == MAX_TYPING_ROOMS


def test_a_made_up_token_reveals_nothing(place: RestartableServer) -> None:
    room_id = create(place.bob, preset="public_chat")
    since = sync(place.alice)["next_batch"]
    place.begin_anew()
    answer = sync(place.alice, f"{since}-1.2.3.999999999999999999")
    assert typing(answer) == {}
    assert "-" not in answer["next_batch"]
    place.type(room_id)
    assert "rooms" not in sync(place.alice, answer["next_batch"])
    for wrong in ("-", "-1.", "-x", "-1..2", "-" + ".".join(["1"] * (MAX_TYPING_ROOMS + 1))):
        assert place.alice.get(f"/_matrix/client/v3/sync?since={since}{wrong}").status == 400


MANY_ROOMS = "-" + ".".join(map(str, range(1, MAX_TYPING_ROOMS + 1)))
"""The end of a token that a client made up without knowing which rooms exist."""


@pytest.mark.parametrize("was_in_it", [False, True])
def test_a_token_does_not_reveal_typing_in_other_rooms(
    place: RestartableServer, was_in_it: bool
) -> None:
    own = place.room()
    elsewhere = create(place.bob, preset="public_chat")
    if was_in_it:
        act(place.alice, elsewhere, "join")
        act(place.alice, elsewhere, "leave")
    since = sync(place.alice)["next_batch"]
    place.type(elsewhere)
    now = sync(place.alice, since)["next_batch"]
    answers = [sync(place.alice, now + MANY_ROOMS)]
    place.type(elsewhere, typing=False)
    now = sync(place.alice, now)["next_batch"]
    answers.append(sync(place.alice, now + MANY_ROOMS))
    assert typing(answers[0]) == typing(answers[1]) == {own: []}
    assert [parse_sync_token(answer["next_batch"]).typing_rooms for answer in answers] == [(), ()]


def test_a_pos_does_not_reveal_typing_in_other_rooms(place: RestartableServer) -> None:
    own = place.room()
    elsewhere = create(place.bob, preset="public_chat")
    client = SlidingClient(
        place.alice, lists={"all": a_list([0, 9])}, extensions={"typing": {"enabled": True}}
    )
    client.sync()
    named = []
    for is_typing in (True, False):
        place.type(elsewhere, typing=is_typing)
        client.sync()
        split = split_pos(client.pos or "")
        assert split is not None
        client.pos = f"{split[0]}-{place.number_of(elsewhere)}_{split[1]}"
        say(place.bob, own, "salom")
        client.sync()
        split = split_pos(client.pos or "")
        assert split is not None
        named.append(split[0].typing_rooms)
    assert named == [(), ()]


def test_all_endpoints_accept_tokens_with_typing(place: RestartableServer) -> None:
    room_id = place.room()
    said = say(place.bob, room_id, "salom")
    place.type(room_id)
    token = sync(place.alice)["next_batch"]
    client = SlidingClient(
        place.alice, lists={"all": a_list([0, 9])}, extensions={"typing": {"enabled": True}}
    )
    client.sync()
    assert "-" in token
    assert "-" in (client.pos or "")
    room = f"/_matrix/client/v3/rooms/{room_id}"
    for each in (token, client.pos):
        for path in (
            f"{room}/messages?dir=b&from={each}",
            f"{room}/messages?dir=f&from={each}&to={each}",
            f"{room}/members?at={each}",
            f"/_matrix/client/v1/rooms/{room_id}/relations/{quote(said)}?from={each}&to={each}",
        ):
            assert place.alice.get(path).status == 200, path
    assert place.alice.get(f"/_matrix/client/v3/keys/changes?from={token}&to={token}").status == 200
    assert place.alice.get(f"/_matrix/client/v3/events?from={token}&timeout=0").status == 200


def test_tokens_with_typing_are_read_back_from_text() -> None:
    for token in (
        SyncToken(1, 2),
        SyncToken(1, 2, 3),
        SyncToken(1, 2, typing_rooms=(4,)),
        SyncToken(1, 2, 3, (4, 5)),
    ):
        assert parse_sync_token(str(token)) == token
        if token.to_device is None:
            assert split_pos(f"{token}_7.a1.b2") == (token, "7.a1.b2")
