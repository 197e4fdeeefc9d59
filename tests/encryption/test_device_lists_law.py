"""`device_lists` against a plain model.

Users join and leave rooms at random, encryption is turned on, devices change, the server restarts
and keeps many changes in memory or few. Messages pile up for devices, so that responses end before
the current position. A client that syncs now and then must get every user in `changed` of whom the
model says so, and exactly the right users in `left`.
"""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from homeserver.services.streams import recent_changes
from homeserver.services.sync.device_sections import MESSAGES_PER_RESPONSE
from tests.helpers.databases import copy_sqlite, open_inline
from tests.helpers.server import TestServer

V3 = "/_matrix/client/v3"
NAMES = ("alice", "bob", "carol", "dave")
ROOMS = 3

Action = tuple[str, int, int]
actions = st.lists(
    st.tuples(
        st.sampled_from(
            ["join", "leave"] * 5
            + ["sync"] * 4
            + ["encrypt", "device", "kick", "messages", "rename", "look"] * 2
            + ["forget", "restart"]
        ),
        st.integers(0, len(NAMES) - 1),
        st.integers(0, ROOMS - 1),
    ),
    min_size=4,
    max_size=30,
)


class DeviceListModel:
    """The server, its users, and what each of them should know."""

    def __init__(self, folder: Path, template: Path) -> None:
        self.folder = folder
        self.config = copy_sqlite(template, folder)
        self.database = open_inline(self.config)
        self.server = TestServer(folder, self.database)
        self.people = [self.server.register(name) for name in NAMES]
        self.owner = self.server.register("owner")
        self.rooms = [
            str(self.owner.post(f"{V3}/createRoom", {"preset": "public_chat"}).json["room_id"])
            for _ in range(ROOMS)
        ]
        self.joined: set[tuple[int, int]] = set()
        self.encrypted: set[int] = set()
        self.count = 0
        self.since: list[str] = []
        self.known: list[set[str]] = [set() for _ in NAMES]
        """The device lists that each client tracks."""
        self.is_whole = [True for _ in NAMES]
        """Whether the last response of each user ended at the current position."""
        self.devices: list[set[str]] = [set() for _ in NAMES]
        """The users whose devices changed, of which each user has to learn if they share a room."""
        for who in range(len(NAMES)):
            self.since.append(self._sync(who)["next_batch"])

    def do(self, action: Action) -> None:
        name, who, where = action
        self.count += 1
        getattr(self, f"_do_{name}")(who, where)

    def close(self) -> None:
        Deferred.fromCoroutine(self.database.close())

    def sharing(self, who: int) -> set[str]:
        """Return the users who share an encrypted room with a user, by the model."""
        rooms = {where for where in self.encrypted if (who, where) in self.joined}
        others = {
            self.people[other].user_id
            for other, where in self.joined
            if where in rooms and other != who
        }
        return others | ({self.owner.user_id} if rooms else set())

    def check(self, who: int) -> None:
        """Check a sync and /keys/changes of a user."""
        before, changed, left = set(self.known[who]), set[str](), set[str]()
        answers = []
        while True:
            lists, is_last = self.look(who)
            answers.append(lists)
            changed |= set(lists["changed"])
            left |= set(lists["left"])
            if is_last:
                break
        now, received = self.sharing(who), (NAMES[who], before, answers)
        assert self.known[who] == now, (received, now)
        assert not self.devices[who] & now, (received, now)
        assert changed <= now | left | {self.people[who].user_id}, (received, now)
        if len(answers) == 1 and self.is_whole[who]:
            assert left == before - now, (received, now)
        self.is_whole[who] = True

    def look(self, who: int) -> tuple[Any, bool]:
        """Process one response: return its lists and whether it ends at the current position. The
        client follows it and queries keys at once."""
        answer = self._sync(who, self.since[who])
        lists = answer["device_lists"]
        changed, left = set(lists["changed"]), set(lists["left"])
        assert not changed & left
        changes = (
            self.people[who]
            .get(f"{V3}/keys/changes?from={self.since[who]}&to={answer['next_batch']}")
            .json
        )
        assert changes == lists
        self.known[who] = (self.known[who] | changed - {self.people[who].user_id}) - left
        self.devices[who] -= changed | left
        self.since[who] = answer["next_batch"]
        return lists, len(answer["to_device"]["events"]) < MESSAGES_PER_RESPONSE

    def _sync(self, who: int, since: str | None = None) -> Any:
        answer = self.people[who].get(f"{V3}/sync" + ("" if since is None else f"?since={since}"))
        assert answer.status == 200, answer.body
        return answer.json

    def _do_sync(self, who: int, _where: int) -> None:
        self.check(who)

    def _do_look(self, who: int, _where: int) -> None:
        _, self.is_whole[who] = self.look(who)

    def _do_join(self, who: int, where: int) -> None:
        assert self.people[who].post(f"{V3}/join/{self.rooms[where]}").status == 200
        self.joined.add((who, where))

    def _do_leave(self, who: int, where: int) -> None:
        self.people[who].post(f"{V3}/rooms/{self.rooms[where]}/leave")
        self.joined.discard((who, where))

    def _do_kick(self, who: int, where: int) -> None:
        self.owner.post(
            f"{V3}/rooms/{self.rooms[where]}/kick", {"user_id": self.people[who].user_id}
        )
        self.joined.discard((who, where))

    def _do_forget(self, who: int, where: int) -> None:
        self._do_leave(who, where)
        self.people[who].post(f"{V3}/rooms/{self.rooms[where]}/forget")

    def _do_encrypt(self, _who: int, where: int) -> None:
        content = {"algorithm": "m.megolm.v1.aes-sha2", "rotation_period_msgs": self.count}
        assert (
            self.owner.put(
                f"{V3}/rooms/{self.rooms[where]}/state/m.room.encryption/", content
            ).status
            == 200
        )
        self.encrypted.add(where)

    def _do_device(self, who: int, _where: int) -> None:
        user = self.people[who]
        keys = {
            "user_id": user.user_id,
            "device_id": user.device_id,
            "algorithms": ["m.megolm.v1.aes-sha2"],
            "keys": {f"ed25519:{user.device_id}": str(self.count)},
            "signatures": {},
        }
        assert user.post(f"{V3}/keys/upload", {"device_keys": keys}).status == 200
        for waiting in self.devices:
            waiting.add(user.user_id)

    def _do_rename(self, who: int, _where: int) -> None:
        user = self.people[who]
        assert (
            user.put(
                f"{V3}/profile/{user.user_id}/displayname", {"displayname": str(self.count)}
            ).status
            == 200
        )
        self.server.clock.advance(1)

    def _do_messages(self, who: int, _where: int) -> None:
        """More than half of the messages of one response."""
        user = self.people[who]
        for number in range(MESSAGES_PER_RESPONSE // 2 + 10):
            body = {"messages": {user.user_id: {user.device_id: {"number": number}}}}
            path = f"{V3}/sendToDevice/m.test/{self.count}_{number}"
            assert self.owner.put(path, body).status == 200

    def _do_restart(self, _who: int, _where: int) -> None:
        now = self.server.clock.seconds()
        self.close()
        self.database = open_inline(self.config)
        self.server = TestServer(self.folder, self.database, seed=self.count + 1, now=now + 1)
        for user in (*self.people, self.owner):
            user.server = self.server


@settings(
    max_examples=60,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(actions, st.sampled_from([recent_changes.MAX_CHANGES, 20]))
@example(
    [("join", 0, 0), *[("messages", 0, 0)] * 2, ("leave", 0, 0), ("encrypt", 0, 0)], 20_000
)  # neither did they here, though the first response ends before the user left
@example(
    [("join", 0, 0), ("sync", 0, 0), ("encrypt", 0, 0), ("leave", 0, 0)], 20
)  # they never shared an encrypted room
def test_clients_know_which_devices_to_query(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, steps: list[Action], kept: int
) -> None:
    live_through(tmp_path_factory.mktemp("server"), sqlite_template, steps, kept)


ALICE, BOB, CAROL = range(3)


@pytest.mark.parametrize(
    "moves",
    [
        pytest.param([("join", CAROL, 0), ("rename", CAROL, 0)], id="who_came_has_another_name"),
        pytest.param(
            [("join", CAROL, 0), ("leave", CAROL, 0), ("join", CAROL, 0)], id="who_came_comes_again"
        ),
        pytest.param(
            [("join", BOB, 0), ("rename", BOB, 0)], id="who_syncs_came_and_has_another_name"
        ),
        pytest.param(
            [("leave", BOB, 0), ("leave", ALICE, 0), ("join", BOB, 0)],
            id="who_syncs_was_away_while_another_left",
        ),
        pytest.param([("leave", ALICE, 0), ("leave", BOB, 0)], id="who_syncs_left_after_another"),
        pytest.param(
            [("leave", ALICE, 0), ("join", ALICE, 0), ("leave", ALICE, 0)],
            id="who_left_leaves_again",
        ),
    ],
)
@pytest.mark.parametrize("forgetting", ["nothing", "restart", "little memory"])
@pytest.mark.parametrize("number", [1, 2])
def test_device_list_changes_arrive_while_messages_are_pending(
    tmp_path: Path, sqlite_template: Path, moves: list[Action], forgetting: str, number: int
) -> None:
    """The first response ends within the messages: after some of the changes, before the others."""
    steps: list[Action] = [("join", ALICE, 0), ("encrypt", 0, 0)]
    if moves[0] != ("join", BOB, 0):
        steps.append(("join", BOB, 0))
    steps += [
        ("sync", BOB, 0),
        ("messages", BOB, 0),
        *moves[:number],
        ("messages", BOB, 0),
        *moves[number:],
    ]
    if forgetting == "restart":
        steps.append(("restart", 0, 0))
    live_through(
        tmp_path,
        sqlite_template,
        steps,
        20 if forgetting == "little memory" else recent_changes.MAX_CHANGES,
    )


@pytest.mark.parametrize("leaver", [ALICE, BOB])
@pytest.mark.parametrize("kept", [recent_changes.MAX_CHANGES, 20])
@pytest.mark.parametrize("change", ["device", "encrypt"])
def test_a_changed_user_who_was_away_between_two_responses_is_in_changed(
    tmp_path: Path, sqlite_template: Path, leaver: int, kept: int, change: str
) -> None:
    """When the response that ends after the change is made, the room is not shared; for the next
    one it was always shared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recent_changes, "MAX_CHANGES", kept)
        model = DeviceListModel(tmp_path, sqlite_template)
        for step in [
            ("join", ALICE, 0),
            ("join", BOB, 0),
            *([("encrypt", 0, 0)] if change == "device" else []),
        ]:
            model.do(step)
        for step in [
            ("sync", BOB, 0),
            (change, ALICE, 0),
            *[("messages", BOB, 0)] * 2,
            ("leave", leaver, 0),
        ]:
            model.do(step)
        bob, alice, token = model.people[BOB], model.people[ALICE].user_id, model.since[BOB]
        first = bob.get(f"{V3}/sync?since={token}").json
        model.do(("join", leaver, 0))
        second = bob.get(f"{V3}/sync?since={first['next_batch']}").json
        received = [answer["device_lists"]["changed"] for answer in (first, second)]
        assert alice in received[0] + received[1], received
        model.close()


def live_through(folder: Path, template: Path, steps: list[Action], kept: int) -> None:
    """`kept`: the minimum number of changes that the server keeps in memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recent_changes, "MAX_CHANGES", kept)
        model = DeviceListModel(folder, template)
        try:
            for step in steps:
                model.do(step)
            for who in range(len(NAMES)):
                model.check(who)
        finally:
            model.close()
