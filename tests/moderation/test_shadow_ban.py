"""Shadow-banned accounts: nothing that they send reaches anybody, and they do not notice."""

import pytest

from storage.directory.shadow_ban import ShadowRoomStore
from storage.engine.database import Database
from tests.helpers.browser import Browser
from tests.helpers.remote_membership import members
from tests.helpers.room_actions import (
    V3,
    all_texts,
    create,
    join,
    ok,
    put_event,
    put_state,
    redact,
    room_path,
    say,
)
from tests.helpers.server import TestServer, User

PUBLIC = {"visibility": "public", "preset": "public_chat"}
SENT = "/_matrix/client/v3/sendToDevice/m.test"


def path_of(user: User) -> str:
    return f"/_synapse/admin/v1/users/{user.user_id}/shadow_ban"


@pytest.fixture
def mallory(server: TestServer, root: User) -> User:
    """A shadow-banned user."""
    mallory = server.register("mallory")
    assert root.post(path_of(mallory)).status == 200
    return mallory


def test_sent_events_reach_nobody(
    server: TestServer, alice: User, mallory: User, root: User
) -> None:
    bob = server.register("bob")
    room_id = create(
        alice, preset="public_chat", power_level_content_override={"users": {mallory.user_id: 100}}
    )
    join(mallory, room_id)
    join(bob, room_id)
    hers = say(alice, room_id, "hello")
    first, second = (
        ok(put_event(mallory, room_id, "m.room.message", {"body": "spam"}))["event_id"]
        for _ in range(2)
    )
    assert first.startswith("$")
    assert (len(first), first != second) == (44, True)
    assert (
        mallory.get(f"{room_path(room_id)}/event/{first}").errcode == "M_NOT_FOUND"
    )  # there is no echo
    same = f"{room_path(room_id)}/send/m.room.message/again"
    assert ok(mallory.put(same, {"body": "x"})) == ok(mallory.put(same, {"body": "x"}))
    assert ok(put_state(mallory, room_id, "m.room.topic", {"topic": "spam"}))[
        "event_id"
    ].startswith("$")
    assert ok(redact(mallory, room_id, hers))["event_id"].startswith("$")
    ok(mallory.put(f"{room_path(room_id)}/typing/{mallory.user_id}", {"typing": True}))
    for action in ("invite", "ban", "kick"):
        target = root if action == "invite" else bob
        ok(mallory.post(f"{room_path(room_id)}/{action}", {"user_id": target.user_id}))
    assert all_texts(alice, room_id) == ["hello"]
    assert alice.get(f"{room_path(room_id)}/state/m.room.topic").status == 404
    assert members(alice, room_id) == dict.fromkeys(
        (alice.user_id, mallory.user_id, bob.user_id), "join"
    )
    assert "spam" not in str(alice.get(f"{V3}/sync").json)
    assert root.delete(path_of(mallory)).status == 200
    say(mallory, room_id, "sorry")
    assert all_texts(alice, room_id) == ["hello", "sorry"]


def test_requests_that_other_users_may_not_make_are_refused(
    alice: User, mallory: User, root: User
) -> None:
    """Otherwise one request would reveal the ban."""
    nobody = root  # mallory is in none of these rooms either
    private, public = create(alice), create(alice, preset="public_chat")
    ours = say(alice, public, "hello")
    join(mallory, public)
    for user in (mallory, nobody):
        for room_id in (private, "!none:example.org"):
            answers = [
                put_event(user, room_id, "m.room.message", {"body": "x"}),
                put_state(user, room_id, "m.room.topic", {"topic": "x"}),
                user.post(f"{room_path(room_id)}/invite", {"user_id": "@x:elsewhere.org"}),
                redact(user, room_id, ours),
            ]
            assert {(answer.status, answer.errcode) for answer in answers} == {(403, "M_FORBIDDEN")}
    join(nobody, public)
    for user in (mallory, nobody):
        for action, target in (("kick", alice), ("ban", alice)):
            assert (
                user.post(f"{room_path(public)}/{action}", {"user_id": target.user_id}).status
                == 403
            )
        assert put_state(user, public, "m.room.topic", {"topic": "x"}).status == 403
        assert (
            put_state(user, public, "m.room.member", {"membership": "ban"}, alice.user_id).status
            == 403
        )
        assert put_event(user, public, "m.room.message", {"body": "x"}).status == 200


def test_invites_and_names_in_rooms_reach_nobody(alice: User, mallory: User) -> None:
    assert ok(mallory.post(f"{V3}/createRoom", {"invite": [alice.user_id]}))["room_id"]
    room_id = create(alice, preset="public_chat")
    ok(mallory.post(f"{V3}/join/{room_id}", {"reason": "buy this"}))
    ok(mallory.put(f"{V3}/profile/{mallory.user_id}/displayname", {"displayname": "Buy This"}))
    assert ok(mallory.get(f"{V3}/profile/{mallory.user_id}/displayname")) == {
        "displayname": "Buy This"
    }
    own = {"membership": "join", "displayname": "Buy this"}
    ok(put_state(mallory, room_id, "m.room.member", own, mallory.user_id))
    seen = str(alice.get(f"{V3}/sync").json).lower()
    assert "buy this" not in seen
    assert alice.get(f"{V3}/sync").json["rooms"].get("invite", {}) == {}
    ok(
        put_state(
            mallory,
            room_id,
            "m.room.member",
            {"membership": "leave", "reason": "buy this"},
            mallory.user_id,
        )
    )
    assert members(alice, room_id)[mallory.user_id] == "leave"
    assert "buy this" not in str(alice.get(f"{V3}/sync").json).lower()


def test_profile_changes_are_visible_only_to_their_owner(
    alice: User, mallory: User, root: User
) -> None:
    profile = f"{V3}/profile/{mallory.user_id}"
    room_id, another = create(alice, preset="public_chat"), create(alice, preset="public_chat")
    join(mallory, room_id)
    ok(mallory.put(f"{profile}/displayname", {"displayname": "Buy This"}))
    ok(mallory.put(f"{profile}/avatar_url", {"avatar_url": "mxc://example.org/buythis"}))
    ok(mallory.put(f"{profile}/org.example.status", {"org.example.status": "Buy this"}))
    ok(mallory.post(f"{room_path(room_id)}/leave", {}))
    join(mallory, room_id)
    own = {"membership": "join", "displayname": "Buy this", "reason": "Buy this"}
    ok(put_state(mallory, another, "m.room.member", own, mallory.user_id))
    assert members(alice, another)[mallory.user_id] == "join"
    knockable = create(
        alice, initial_state=[{"type": "m.room.join_rules", "content": {"join_rule": "knock"}}]
    )
    ok(mallory.post(f"{V3}/knock/{knockable}", {"reason": "Buy this"}))
    made = ok(mallory.post(f"{V3}/createRoom", {"preset": "public_chat"}))["room_id"]
    join(alice, made)
    search = alice.post(f"{V3}/user_directory/search", {"search_term": "mallory"})
    seen = [
        alice.get(profile),
        alice.get(f"{profile}/displayname"),
        alice.get(f"{V3}/sync"),
        search,
    ]
    assert [answer.status for answer in seen] == [200] * 4
    assert "buy" not in "".join(str(answer.json) for answer in seen).lower()
    assert alice.get(f"{profile}/org.example.status").status == 404
    profile_of_hers = {
        "avatar_url": "mxc://example.org/buythis",
        "displayname": "Buy This",
        "org.example.status": "Buy this",
    }
    assert ok(mallory.get(profile)) == profile_of_hers
    assert ok(mallory.get(f"{profile}/displayname")) == {"displayname": "Buy This"}
    ok(mallory.delete(f"{profile}/displayname"))
    assert mallory.get(f"{profile}/displayname").status == 404
    assert ok(alice.get(f"{profile}/displayname")) == {"displayname": "mallory"}
    assert root.delete(path_of(mallory)).status == 200
    assert ok(mallory.get(profile)) == ok(alice.get(profile)) == {"displayname": "mallory"}


def test_a_name_set_on_the_account_page_is_visible_only_to_its_owner(
    server: TestServer, alice: User, mallory: User
) -> None:
    room_id = create(alice, preset="public_chat")
    join(mallory, room_id)
    browser = Browser(server)
    browser.open("/_mahalla/account")
    browser.send("/_mahalla/sign_in", name="mallory", password="wonderland")
    form = next(form for form in browser.page.forms if form.fields.get("do") == "name")
    browser.post(form.action, {**form.fields, "name": "Buy This"})
    browser.open("/_mahalla/account")
    assert "Buy This" in browser.text
    assert ok(alice.get(f"{V3}/profile/{mallory.user_id}/displayname")) == {
        "displayname": "mallory"
    }
    assert "Buy This" not in str(alice.get(f"{V3}/sync").json)


def listed(user: User) -> list[str]:
    """The directory, by both endpoints."""
    asked, queried = ok(user.get(f"{V3}/publicRooms")), ok(user.post(f"{V3}/publicRooms", {}))
    assert asked == queried
    assert asked["total_room_count_estimate"] == len(asked["chunk"])
    return [room["room_id"] for room in asked["chunk"]]


def visibility(user: User, room_id: str) -> str:
    received: str = ok(user.get(f"{V3}/directory/list/room/{room_id}"))["visibility"]
    return received


def room_of(user: User, alias: str) -> str | None:
    answer = user.get(f"{V3}/directory/room/%23{alias}:example.org")
    assert answer.status in (200, 404)
    received: str | None = answer.json.get("room_id")
    return received


def aliases_of(user: User, room_id: str) -> list[str]:
    received: list[str] = ok(user.get(f"{room_path(room_id)}/aliases"))["aliases"]
    return received


def test_directory_changes_are_visible_only_to_them(alice: User, mallory: User, root: User) -> None:
    requested = {"visibility": "public", "name": "Buy this", "topic": "Buy this"}
    made = ok(mallory.post(f"{V3}/createRoom", requested))["room_id"]
    later = create(mallory)
    theirs = create(alice, power_level_content_override={"users": {mallory.user_id: 100}}, **PUBLIC)
    join(mallory, theirs)
    assert (visibility(mallory, made), visibility(mallory, later)) == ("public", "private")
    for room_id, value in ((later, "public"), (theirs, "private")):
        ok(mallory.put(f"{V3}/directory/list/room/{room_id}", {"visibility": value}))
        assert visibility(mallory, room_id) == value
    assert set(listed(mallory)) == {made, later}
    found = ok(mallory.post(f"{V3}/publicRooms", {"filter": {"generic_search_term": "buy"}}))[
        "chunk"
    ]
    assert [room["room_id"] for room in found] == [made]
    page = ok(mallory.get(f"{V3}/publicRooms?limit=1"))
    then = ok(mallory.get(f"{V3}/publicRooms?limit=1&since={page['next_batch']}"))
    assert {room["room_id"] for room in (*page["chunk"], *then["chunk"])} == {made, later}
    assert listed(alice) == [theirs]
    assert [visibility(alice, room_id) for room_id in (made, later, theirs)] == [
        "private",
        "private",
        "public",
    ]
    ok(mallory.put(f"{V3}/directory/list/room/{theirs}", {"visibility": "public"}))
    assert listed(mallory)[0] == theirs
    assert root.delete(path_of(mallory)).status == 200
    assert listed(mallory) == listed(alice) == [theirs]


def test_an_upgrade_affects_nobody_else(alice: User, mallory: User, root: User) -> None:
    levels = {"users": {mallory.user_id: 150}}
    room_id = create(alice, room_alias_name="den", power_level_content_override=levels, **PUBLIC)
    join(mallory, room_id)
    before = ok(alice.get(f"{V3}/sync"))["next_batch"]
    upgrade = f"{room_path(room_id)}/upgrade"
    new = ok(mallory.post(upgrade, {"new_version": "11"}))["replacement_room"]
    assert members(mallory, new) == {mallory.user_id: "join"}
    assert (
        mallory.get(f"{room_path(new)}/state/m.room.create").json["predecessor"]["room_id"]
        == room_id
    )
    # a repeated request gets the same answer, as for other users
    assert ok(mallory.post(upgrade, {"new_version": "11"}))["replacement_room"] == new
    # aliases and the listing have moved for mallory
    assert (room_of(mallory, "den"), aliases_of(mallory, new), aliases_of(mallory, room_id)) == (
        new,
        ["#den:example.org"],
        [],
    )
    assert ok(mallory.post(f"{V3}/join/%23den:example.org"))["room_id"] == new
    assert ok(put_state(mallory, new, "m.room.canonical_alias", {"alias": "#den:example.org"}))
    assert (listed(mallory), visibility(mallory, room_id), visibility(mallory, new)) == (
        [new],
        "private",
        "public",
    )
    another = ok(mallory.post(upgrade, {"new_version": "10"}))["replacement_room"]
    assert another not in (new, room_id)
    # and for nobody else
    assert "rooms" not in ok(alice.get(f"{V3}/sync?since={before}"))
    assert alice.get(f"{room_path(room_id)}/state/m.room.tombstone").status == 404
    assert (room_of(alice, "den"), aliases_of(alice, room_id), listed(alice)) == (
        room_id,
        ["#den:example.org"],
        [room_id],
    )
    low = create(alice, preset="public_chat")
    join(mallory, low)
    assert mallory.post(f"{room_path(low)}/upgrade", {"new_version": "11"}).status == 403
    assert root.delete(path_of(mallory)).status == 200
    assert (room_of(mallory, "den"), listed(mallory)) == (room_id, [room_id])


def test_an_alias_of_another_user_is_removed_only_for_them(alice: User, mallory: User) -> None:
    levels = {"users": {mallory.user_id: 100}}
    room_id = create(
        alice, room_alias_name="den", power_level_content_override=levels, preset="public_chat"
    )
    join(mallory, room_id)
    den = f"{V3}/directory/room/%23den:example.org"
    ok(mallory.delete(den))
    assert (room_of(mallory, "den"), aliases_of(mallory, room_id)) == (None, [])
    assert mallory.delete(den).status == 404
    assert mallory.post(f"{V3}/join/%23den:example.org").status == 404
    assert (room_of(alice, "den"), aliases_of(alice, room_id)) == (room_id, ["#den:example.org"])
    own = ok(mallory.post(f"{V3}/createRoom", {"room_alias_name": "den"}))["room_id"]
    assert room_of(mallory, "den") == own
    taken = mallory.put(den, {"room_id": room_id})
    assert (taken.status, taken.errcode) == (409, "M_UNKNOWN")
    ok(mallory.delete(den))
    ok(mallory.put(den, {"room_id": room_id}))
    assert room_of(mallory, "den") == room_of(alice, "den") == room_id


def test_an_alias_of_a_shadow_banned_user_is_removed_for_all(alice: User, mallory: User) -> None:
    own = ok(mallory.post(f"{V3}/createRoom", {"room_alias_name": "den", "preset": "public_chat"}))[
        "room_id"
    ]
    new = ok(mallory.post(f"{room_path(own)}/upgrade", {"new_version": "11"}))["replacement_room"]
    assert (room_of(mallory, "den"), room_of(alice, "den")) == (new, own)
    ok(mallory.delete(f"{V3}/directory/room/%23den:example.org"))
    assert room_of(mallory, "den") == room_of(alice, "den") is None
    theirs = create(alice, room_alias_name="den")
    assert room_of(mallory, "den") == theirs


def test_unchanged_state_returns_the_existing_event(alice: User, mallory: User) -> None:
    room_id = create(
        alice, preset="public_chat", power_level_content_override={"users": {mallory.user_id: 100}}
    )
    join(mallory, room_id)
    theirs = ok(put_state(alice, room_id, "m.room.topic", {"topic": "tea"}))["event_id"]
    assert ok(put_state(mallory, room_id, "m.room.topic", {"topic": "tea"}))["event_id"] == theirs


def test_deactivation_deletes_all_hidden_changes(
    server: TestServer, sqlite_database: Database, mallory: User
) -> None:
    room_id = ok(mallory.post(f"{V3}/createRoom", {"visibility": "public"}))["room_id"]
    nid = server.run(server.app.rooms.store.get_rooms([room_id]))[room_id].room_nid
    store = ShadowRoomStore(sqlite_database)
    assert server.run(store.get_listings(mallory.user_id, [nid])) == {nid: True}
    server.run(server.app.user_data.deactivation.do_deactivate(mallory.user_id, erase=False))
    assert server.run(store.get_listings(mallory.user_id, [nid])) == {}


def test_to_device_messages_to_others_are_dropped(alice: User, mallory: User) -> None:
    messages = {user.user_id: {"*": {"body": "x"}} for user in (alice, mallory)}
    ok(mallory.put(f"{SENT}/1", {"messages": messages}))
    assert alice.get(f"{V3}/sync").json.get("to_device", {}).get("events", []) == []
    assert (
        len(mallory.get(f"{V3}/sync").json["to_device"]["events"]) == 1
    )  # messages to own devices arrive, for verification


def test_administrators_see_the_ban_and_its_user_does_not(
    server: TestServer, root: User, mallory: User
) -> None:
    assert root.get(f"/_synapse/admin/v2/users/{mallory.user_id}").json["shadow_banned"] is True
    listed = root.get("/_synapse/admin/v2/users?order_by=shadow_banned&dir=b").json["users"]
    assert [user["shadow_banned"] for user in listed] == [True, False]
    assert root.delete(path_of(mallory)).status == 200
    records = root.get(f"/_mahalla/admin/v1/users/{mallory.user_id}/audit").json["records"]
    assert [(each["event"], each["by"]) for each in records[:2]] == [
        ("shadow_ban_lifted", root.user_id),
        ("shadow_banned", root.user_id),
    ]
    browser = Browser(server)
    browser.open("/_mahalla/account")
    browser.send("/_mahalla/sign_in", name="mallory", password="wonderland")
    assert "The account was created" in browser.words
    assert "shadow_ban" not in browser.text


def test_only_administrators_may_set_it(root: User, alice: User, mallory: User) -> None:
    assert alice.post(path_of(mallory)).errcode == "M_FORBIDDEN"
    assert root.post(path_of(root)).status == 400
    assert (
        root.post("/_synapse/admin/v1/users/@nobody:example.org/shadow_ban").errcode
        == "M_NOT_FOUND"
    )
    assert root.post("/_synapse/admin/v1/users/@a:elsewhere.org/shadow_ban").status == 400
