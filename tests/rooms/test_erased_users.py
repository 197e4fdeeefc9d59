"""Events of an erased user: complete for those who were in the room, without content for those who
join later, by every way to read a room.

spec: client-server-api#post_matrixclientv3accountdeactivate (`erase`)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage.account_data.account_data import AccountDataStore
from storage.engine.database import Database, PostgresConfig, SQLiteConfig
from storage.engine.transaction import WriteTransaction
from tests.helpers.databases import QueryCounter, open_inline
from tests.helpers.event_search import begin_jobs, search, settle
from tests.helpers.logins import password_auth
from tests.helpers.room_actions import (
    create,
    join,
    leave,
    ok,
    relate,
    room_path,
    say,
    set_state,
)
from tests.helpers.server import TestServer, User
from tests.helpers.sliding_client import SlidingClient, a_list
from tests.helpers.sync_requests import sync

SECRET = "elderberry"
ALL = {"room": {"timeline": {"limit": 1000}}}


class ErasedUserRooms:
    """erin was in a room with bob and carol; carol left again; then erin's account was erased."""

    def __init__(self, server: TestServer) -> None:
        self.server = server
        begin_jobs(server)
        self.erin, self.bob, self.carol = (
            server.register(name) for name in ("erin", "bob", "carol")
        )
        ok(
            self.erin.put(
                f"/_matrix/client/v3/profile/{self.erin.user_id}/displayname",
                {"displayname": SECRET},
            )
        )
        self.room_id = create(
            self.erin,
            preset="public_chat",
            power_level_content_override={"users": {self.bob.user_id: 100}},
        )
        for user in (self.bob, self.carol):
            join(user, self.room_id)
        set_state(self.erin, self.room_id, "m.room.name", {"name": f"{SECRET} club"})
        self.said = say(self.erin, self.room_id, f"{SECRET} one")
        self.root = say(self.bob, self.room_id, "root")
        self.reply = relate(self.erin, self.room_id, self.root, "m.thread", f"{SECRET} reply")
        self.edited = say(self.erin, self.room_id, f"{SECRET} two")
        edit = {"m.new_content": {"msgtype": "m.text", "body": f"{SECRET} three"}}
        relate(self.erin, self.room_id, self.edited, "m.replace", f"* {SECRET} three", **edit)
        leave(self.carol, self.room_id)
        self.unseen = say(self.erin, self.room_id, f"{SECRET} last")
        set_state(self.erin, self.room_id, "m.room.topic", {"topic": f"{SECRET} and tea"})
        proof = password_auth(self.erin.user_id)
        ok(self.erin.post("/_matrix/client/v3/account/deactivate", {"erase": True, "auth": proof}))
        set_state(self.bob, self.room_id, "m.room.topic", {"topic": "tea"})
        settle(server)

    def path(self, *rest: str, **query: object) -> str:
        return room_path(self.room_id, *rest, **query)


@pytest.fixture
def scenario(server: TestServer) -> ErasedUserRooms:
    return ErasedUserRooms(server)


def by_event(scenario: ErasedUserRooms, user: User) -> Any:
    return [
        ok(user.get(scenario.path("event", each)))
        for each in (scenario.said, scenario.edited, scenario.reply, scenario.root)
    ]


def by_messages(scenario: ErasedUserRooms, user: User) -> Any:
    return [ok(user.get(scenario.path("messages", dir=way, limit=1000)))["chunk"] for way in "bf"]


def by_context(scenario: ErasedUserRooms, user: User) -> Any:
    answer = ok(user.get(scenario.path("context", scenario.said, limit=1000)))
    return [answer["event"], answer["events_before"], answer["events_after"]]


def by_relations(scenario: ErasedUserRooms, user: User) -> Any:
    path = f"/_matrix/client/v1/rooms/{scenario.room_id}"
    relations = [
        ok(user.get(f"{path}/relations/{each}"))["chunk"]
        for each in (scenario.root, scenario.edited)
    ]
    return [relations, ok(user.get(f"{path}/threads"))["chunk"]]


def by_sync(scenario: ErasedUserRooms, user: User) -> Any:
    return sync(user, filter=ALL)["rooms"]["join"][scenario.room_id]["timeline"]["events"]


def by_sliding_sync(scenario: ErasedUserRooms, user: User) -> Any:
    answer = SlidingClient(user, lists={"all": a_list([0, 9], limit=1000)}).sync()
    return answer["rooms"][scenario.room_id]["timeline"]


def by_initial_sync(scenario: ErasedUserRooms, user: User) -> Any:
    return ok(user.get(scenario.path("initialSync", limit=100)))["messages"]["chunk"]


def by_search(_town: ErasedUserRooms, user: User) -> Any:
    around = {"before_limit": 100, "after_limit": 100}
    return [search(user, word, event_context=around)["results"] for word in ("root", SECRET)]


WAYS: tuple[Callable[[ErasedUserRooms, User], Any], ...] = (
    by_event,
    by_messages,
    by_context,
    by_relations,
    by_sync,
    by_sliding_sync,
    by_initial_sync,
    by_search,
)


def test_later_members_see_no_content(scenario: ErasedUserRooms) -> None:
    dora = scenario.server.register("dora")
    join(dora, scenario.room_id)
    for way in WAYS:
        shown, kept = repr(way(scenario, dora)), repr(way(scenario, scenario.bob))
        assert SECRET not in shown, way.__name__
        assert SECRET in kept, way.__name__
    event = ok(dora.get(scenario.path("event", scenario.said)))
    assert (event["sender"], event["content"], event["type"]) == (
        scenario.erin.user_id,
        {},
        "m.room.message",
    )
    assert search(dora, SECRET)["count"] == 0
    # the state is the room's
    assert ok(dora.get(scenario.path("state", "m.room.name"))) == {"name": f"{SECRET} club"}


def test_members_of_that_time_still_see_the_content(scenario: ErasedUserRooms) -> None:
    """Also when their name changes, and when they leave and come back."""
    ok(
        scenario.bob.put(
            f"/_matrix/client/v3/profile/{scenario.bob.user_id}/displayname",
            {"displayname": "Bobby"},
        )
    )
    assert (
        ok(scenario.bob.get(scenario.path("event", scenario.unseen)))["content"]["body"]
        == f"{SECRET} last"
    )
    leave(scenario.bob, scenario.room_id)
    assert (
        ok(scenario.bob.get(scenario.path("event", scenario.unseen)))["content"]["body"]
        == f"{SECRET} last"
    )
    join(scenario.bob, scenario.room_id)
    for number in range(30):
        name = {"displayname": f"Bob {number}"}
        ok(scenario.bob.put(f"/_matrix/client/v3/profile/{scenario.bob.user_id}/displayname", name))
    for event_id in (scenario.said, scenario.unseen):
        assert SECRET in ok(scenario.bob.get(scenario.path("event", event_id)))["content"]["body"]


def test_former_members_still_see_the_content_of_their_time(scenario: ErasedUserRooms) -> None:
    assert (
        SECRET in ok(scenario.carol.get(scenario.path("event", scenario.said)))["content"]["body"]
    )
    join(scenario.carol, scenario.room_id)
    assert (
        SECRET in ok(scenario.carol.get(scenario.path("event", scenario.said)))["content"]["body"]
    )
    assert ok(scenario.carol.get(scenario.path("event", scenario.unseen)))["content"] == {}


def test_another_process_reads_which_users_are_erased(tmp_path: Path, database: Database) -> None:
    """As after a restart: it is read, and not only heard of."""
    scenario = ErasedUserRooms(TestServer(tmp_path, database))
    restarted = TestServer(tmp_path, database, seed=2)
    dora = restarted.register("dora")
    join(dora, scenario.room_id)
    assert ok(dora.get(scenario.path("event", scenario.said)))["content"] == {}


def test_a_deactivated_account_without_erasure_keeps_its_content(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(alice, preset="public_chat")
    said = say(alice, room_id, SECRET)
    join(bob, room_id)
    server.run(server.app.user_data.deactivation.do_deactivate(alice.user_id, erase=False))
    dora = server.register("dora")
    join(dora, room_id)
    assert ok(dora.get(room_path(room_id, "event", said)))["content"]["body"] == SECRET


def test_an_erasure_invalidates_cached_events(tmp_path: Path, database: Database) -> None:
    """Caches are invalidated at each erasure, even if the account was erased before."""
    server = TestServer(tmp_path, database)
    ignored, kept = server.app.settings.ignored, server.app.sync.sliding.room_caches.account_data
    erin, store = server.register("erin").user_id, AccountDataStore(database)

    def keep(txn: WriteTransaction) -> None:
        store.set_entry(
            txn, erin, None, "m.ignored_user_list", b'{"ignored_users":{"@bob:example.org":{}}}'
        )
        store.set_entry(txn, erin, "!tea:example.org", "m.tag", b'{"tags":{}}')

    for _ in range(2):
        server.run(database.write("keep", keep))  # as by an application service, at the last moment
        assert server.run(ignored.of_user(erin)) == {"@bob:example.org"}
        assert server.run(kept.of_user(erin)).rooms
        assert server.run(kept.of_rooms(erin, ["!tea:example.org"]))
        server.run(server.app.user_data.deactivation.do_deactivate(erin, erase=True))
        assert server.run(ignored.of_user(erin)) == set()
        assert server.run(kept.of_rooms(erin, ["!tea:example.org"])) == {}


def test_a_page_costs_the_same_however_much_was_erased(
    tmp_path: Path, database_config: SQLiteConfig | PostgresConfig
) -> None:
    counter = QueryCounter()
    server = TestServer(tmp_path, open_inline(database_config, counter))
    erin, bob, dora = (server.register(name) for name in ("erin", "bob", "dora"))
    costs: dict[tuple[str, int], int] = {}
    rooms = {}
    for many in (2, 40):
        rooms[many] = create(erin, preset="public_chat")
        for number in range(many):
            say(erin, rooms[many], f"{SECRET} {number}")
        join(bob, rooms[many])
    server.run(server.app.user_data.deactivation.do_deactivate(erin.user_id, erase=True))
    for many, room_id in rooms.items():
        join(dora, room_id)
        for user in (bob, dora):
            ok(user.get(room_path(room_id, "messages", dir="b", limit=100)))
            counter.clear()
            shown = ok(user.get(room_path(room_id, "messages", dir="b", limit=100)))["chunk"]
            costs[user.user_id, many] = counter.queries.total()
            assert repr(shown).count(SECRET) == (many if user is bob else 0)
    assert len(set(costs.values())) == 1
