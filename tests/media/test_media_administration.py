"""The admin API of media, on two servers, so that it also handles copies of remote files."""

from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.helpers.federated_media import DAY, DOWNLOAD, THUMBNAIL, pair, stored_files
from tests.helpers.images import picture
from tests.helpers.media_files import upload_file
from tests.helpers.network import Network
from tests.helpers.remote_membership import NORTH, SOUTH
from tests.helpers.room_actions import create, say
from tests.helpers.server import User

ADMIN = "/_synapse/admin/v1"
OURS = "/_mahalla/admin/v1/media"


@pytest.fixture
def people(network: Network) -> tuple[User, User, User]:
    """Alice on the other server, Bob on this one, and its administrator."""
    alice, bob = pair(network)
    root = bob.server.register("root")
    bob.server.run(bob.server.app.user_data.accounts.do_set_flags(root.user_id, is_admin=True))
    return alice, bob, root


def _id(address: str) -> str:
    return address.partition("/")[2]


def _statuses(user: User, *addresses: str) -> list[int]:
    return [user.get(f"{DOWNLOAD}/{address}").status for address in addresses]


def test_a_copy_of_a_remote_file_can_be_deleted(
    people: tuple[User, User, User], tmp_path: Path
) -> None:
    alice, bob, root = people
    theirs = upload_file(alice, b"tea")
    assert _statuses(bob, theirs) == [200]
    before = len(stored_files(tmp_path))
    assert bob.delete(f"{ADMIN}/media/{theirs}").errcode == "M_FORBIDDEN"
    assert root.delete(f"{ADMIN}/media/{theirs}").json == {
        "deleted_media": [_id(theirs)],
        "total": 1,
    }
    assert len(stored_files(tmp_path)) == before - 1
    assert root.delete(f"{ADMIN}/media/{theirs}").status == 404
    assert _statuses(bob, theirs) == [200]  # it is fetched again


def test_a_quarantined_file_is_served_to_nobody(people: tuple[User, User, User]) -> None:
    alice, bob, root = people
    image = picture(80, 60)
    own, same, theirs, other = (
        upload_file(bob, image),
        upload_file(root, image),
        upload_file(alice, image),
        upload_file(bob, b"other"),
    )
    assert _statuses(bob, own, same, theirs, other) == [200] * 4
    assert root.post(f"{ADMIN}/media/quarantine/{theirs}").json == {}
    for user in (bob, root):
        assert _statuses(user, own, same, theirs, other) == [404, 404, 404, 200]
    assert _statuses(alice, own, theirs) == [404, 200]  # its own server has not held it back
    assert bob.get(f"{THUMBNAIL}/{own}?width=32&height=32").status == 404
    assert _statuses(bob, upload_file(bob, image)) == [404]

    bypass = "?admin_unsafely_bypass_quarantine=true"
    assert root.get(f"{DOWNLOAD}/{theirs}{bypass}").body == image
    assert bob.get(f"{DOWNLOAD}/{theirs}{bypass}").errcode == "M_FORBIDDEN"
    info = root.get(f"{ADMIN}/media/{theirs}").json["media_info"]
    assert (info["media_origin"], info["quarantined_by"]) == (NORTH, root.user_id)

    changes = root.get(f"{ADMIN}/media/quarantine_changes").json
    assert [each["quarantined"] for each in changes["changes"]] == [True] * 4
    after = f"{ADMIN}/media/quarantine_changes?from={changes['next_batch']}"
    assert root.get(after).json == {"next_batch": changes["next_batch"], "changes": []}
    assert root.get(after.replace("from=", "from=9")).errcode == "M_INVALID_PARAM"

    assert root.post(f"{ADMIN}/media/unquarantine/{own}").json == {}
    assert _statuses(bob, own, same, theirs) == [200] * 3
    assert len(root.get(after).json["changes"]) == 4


def test_a_deleted_quarantined_file_is_quarantined_when_it_is_fetched_again(
    people: tuple[User, User, User],
) -> None:
    alice, bob, root = people
    own, theirs = upload_file(bob, b"own"), upload_file(alice, b"theirs")
    room = create(bob)
    say(bob, room, f"mxc://{own} mxc://{theirs}")
    bob.get(f"{DOWNLOAD}/{theirs}")
    while bob.server.run(bob.server.app.media.maintenance.references.do_track(1000)):
        pass
    for address in (own, theirs):
        root.post(f"{ADMIN}/media/quarantine/{address}")
    assert root.delete(f"/_mahalla/admin/v1/rooms/{room}/media").json["total"] == 2
    repeated = upload_file(bob, b"own")
    assert _statuses(bob, theirs, repeated) == [404, 404]
    assert root.get(f"{ADMIN}/media/{theirs}").json["media_info"]["quarantined_by"] == "system"
    for address in (theirs, repeated):
        assert root.post(f"{ADMIN}/media/unquarantine/{address}").status == 200
    assert _statuses(bob, theirs, repeated, upload_file(bob, b"own")) == [200] * 3


def test_a_remote_file_is_quarantined_before_it_is_fetched(people: tuple[User, User, User]) -> None:
    alice, bob, root = people
    first, second, freed = (
        upload_file(alice, b"first"),
        upload_file(alice, b"second"),
        upload_file(alice, b"freed"),
    )
    room = create(bob)
    say(bob, room, f"mxc://{second}")
    while bob.server.run(bob.server.app.media.maintenance.references.do_track(1000)):
        pass
    assert root.post(f"{ADMIN}/media/quarantine/{first}").json == {}
    assert root.post(f"{ADMIN}/room/{room}/media/quarantine").json == {"num_quarantined": 0}
    assert root.post(f"{ADMIN}/media/quarantine/{freed}").json == {}
    assert root.post(f"{ADMIN}/media/unquarantine/{freed}").json == {}
    assert _statuses(bob, first, second, freed, upload_file(bob, b"first")) == [404, 404, 200, 404]
    assert root.get(f"{ADMIN}/media/{first}").json["media_info"]["quarantined_by"] == root.user_id
    root.post(f"{ADMIN}/media/unquarantine/{first}")
    assert _statuses(bob, first) == [200]


def test_unknown_files_are_not_found(people: tuple[User, User, User]) -> None:
    _, _, root = people
    reserved = root.post("/_matrix/media/v1/create").json["content_uri"].removeprefix("mxc://")
    for what in (
        f"quarantine/{reserved}",
        f"unquarantine/{reserved}",
        f"quarantine/{SOUTH}/none",
        f"quarantine/{NORTH}/a.b",
        f"unquarantine/{SOUTH}/none",
        f"unquarantine/{NORTH}/none",
        "protect/none",
        "unprotect/none",
    ):
        assert root.post(f"{ADMIN}/media/{what}").errcode == "M_NOT_FOUND", what


def test_protected_files_are_not_quarantined(people: tuple[User, User, User]) -> None:
    _, bob, root = people
    safe, other = upload_file(bob, b"safe"), upload_file(bob, b"other")
    assert root.post(f"{ADMIN}/media/protect/{_id(safe)}").json == {}
    assert root.post(f"{ADMIN}/user/{bob.user_id}/media/quarantine").json == {"num_quarantined": 1}
    assert _statuses(bob, safe, other) == [200, 404]
    assert root.post(f"{ADMIN}/media/unprotect/{_id(safe)}").json == {}
    assert root.post(f"{ADMIN}/user/{bob.user_id}/media/quarantine").json == {"num_quarantined": 1}
    assert _statuses(bob, safe, other) == [404, 404]
    assert bob.delete(f"/_mahalla/client/v1/media/{_id(other)}").errcode == "M_FORBIDDEN"


def test_the_files_of_a_room_are_listed_and_quarantined(people: tuple[User, User, User]) -> None:
    alice, bob, root = people
    own, theirs, face = (
        upload_file(bob, b"own"),
        upload_file(alice, b"theirs"),
        upload_file(bob, b"face"),
    )
    bob.put(f"/_matrix/client/v3/profile/{bob.user_id}/avatar_url", {"avatar_url": f"mxc://{face}"})
    room = create(bob)
    say(bob, room, f"mxc://{own} mxc://{theirs}")
    bob.get(f"{DOWNLOAD}/{theirs}")
    while bob.server.run(bob.server.app.media.maintenance.references.do_track(1000)):
        pass
    assert root.get(f"{ADMIN}/room/{room}/media").json == {
        "local": [f"mxc://{own}"],
        "remote": [f"mxc://{theirs}"],
    }
    usage = root.get(f"{OURS}/usage").json
    assert usage == {
        "local": {"media_count": 2, "media_length": 7},
        "remote": {"media_count": 1, "media_length": 6},
        "stored": {"media_count": 3, "media_length": 13},
        "in_object_store": {"media_count": 0, "media_length": 0},
        "quarantined": 0,
        "rooms": [{"room_id": room, "media_count": 2, "media_length": 9}],
        "servers": [{"server_name": NORTH, "media_count": 1, "media_length": 6}],
    }
    assert root.get(f"{OURS}/usage?servers=1&rooms=1").json == usage
    assert root.get(f"{OURS}/usage?servers=0").errcode == "M_INVALID_PARAM"
    assert root.get(f"{OURS}/usage/rooms/{room}").json == {
        "local": {"media_count": 1, "media_length": 3},
        "remote": {"media_count": 1, "media_length": 6},
    }
    empty = {"media_count": 0, "media_length": 0}
    assert root.get(f"{OURS}/usage/rooms/{create(bob)}").json == {"local": empty, "remote": empty}
    assert root.get(f"{OURS}/usage/rooms/!x:{SOUTH}").errcode == "M_NOT_FOUND"
    assert bob.get(f"{OURS}/usage/rooms/{room}").errcode == "M_FORBIDDEN"
    assert root.post(f"{ADMIN}/room/{room}/media/quarantine").json == {"num_quarantined": 2}
    assert _statuses(bob, own, theirs, face) == [404, 404, 200]
    assert root.post(f"{ADMIN}/quarantine_media/{room}").json == {"num_quarantined": 0}


def test_the_files_of_a_room_are_deleted(people: tuple[User, User, User]) -> None:
    alice, bob, root = people
    addresses = {
        name: upload_file(bob, name.encode())
        for name in ("own", "avatar", "face", "shared", "safe", "theirs")
    }
    addresses["theirs"] = upload_file(alice, b"theirs")
    room, other = create(bob), create(bob)
    for name in ("own", "face", "shared", "safe", "theirs"):
        say(bob, room, f"mxc://{addresses[name]}")
    bob.put(
        f"/_matrix/client/v3/rooms/{room}/state/m.room.avatar",
        {"url": f"mxc://{addresses['avatar']}"},
    )
    bob.put(
        f"/_matrix/client/v3/profile/{bob.user_id}/avatar_url",
        {"avatar_url": f"mxc://{addresses['face']}"},
    )
    say(bob, other, f"mxc://{addresses['shared']}")
    root.post(f"{ADMIN}/media/protect/{_id(addresses['safe'])}")
    bob.get(f"{DOWNLOAD}/{addresses['theirs']}")
    while bob.server.run(bob.server.app.media.maintenance.references.do_track(1000)):
        pass
    path = f"/_mahalla/admin/v1/rooms/{room}/media"
    assert bob.delete(path).errcode == "M_FORBIDDEN"
    answer = root.delete(path).json
    assert set(answer.pop("deleted")) == {
        f"mxc://{addresses[name]}" for name in ("own", "avatar", "safe", "theirs")
    }
    assert answer == {"total": 4, "shown_elsewhere": 2}
    assert (
        _statuses(bob, *(addresses[name] for name in ("own", "avatar", "safe", "face", "shared")))
        == [404] * 3 + [200] * 2
    )
    records = root.get(f"{OURS}/deleted").json["deleted"]
    assert {(each["reason"], each["by"]) for each in records} == {("administrator", root.user_id)}
    assert root.delete("/_mahalla/admin/v1/rooms/!none:north.example/media").json["total"] == 0


def test_uploads_of_a_user_are_listed_and_deleted(
    people: tuple[User, User, User], tmp_path: Path
) -> None:
    _, bob, root = people
    files = [
        upload_file(bob, b"x" * size, query=f"?filename={name}")
        for size, name in ((3, "c"), (1, "a"), (2, "b"))
    ]
    path = f"{ADMIN}/users/{bob.user_id}/media"
    page = root.get(f"{path}?order_by=media_length&limit=2").json
    assert [each["upload_name"] for each in page["media"]] == ["a", "b"]
    assert (page["total"], page["next_token"]) == (3, 2)
    assert "next_token" not in root.get(f"{path}?from=2&order_by=upload_name&dir=b").json
    assert root.get(f"{path}?order_by=nonsense").errcode == "M_INVALID_PARAM"
    assert root.get(f"{path}?limit=0").errcode == "M_INVALID_PARAM"
    assert root.get(f"{ADMIN}/users/@nobody:{SOUTH}/media").status == 404
    assert root.get(f"{ADMIN}/users/@alice:{NORTH}/media").status == 400
    assert bob.get(path).errcode == "M_FORBIDDEN"

    found = root.get(f"{ADMIN}/statistics/users/media?search_term=BOB").json
    assert found == {
        "users": [
            {"user_id": bob.user_id, "displayname": "bob", "media_count": 3, "media_length": 6}
        ],
        "total": 1,
    }
    assert root.get(f"{ADMIN}/statistics/users/media?search_term=").errcode == "M_INVALID_PARAM"
    assert (
        root.get(f"{ADMIN}/statistics/users/media?from_ts=5&until_ts=5").errcode
        == "M_INVALID_PARAM"
    )

    first = root.delete(f"{path}?order_by=media_length&limit=1").json
    assert first == {"deleted_media": [_id(files[1])], "total": 1}
    root.post(f"{ADMIN}/media/quarantine/{files[0]}")
    assert root.delete(f"{ADMIN}/media/{files[0]}").json == {
        "deleted_media": [_id(files[0])],
        "total": 1,
    }
    assert root.delete(f"{ADMIN}/media/{files[0]}").status == 404
    assert root.delete(f"{ADMIN}/media/{NORTH}/abc").status == 404
    assert _statuses(bob, *files) == [404, 404, 200]
    assert len(stored_files(tmp_path)) == 1
    noted = root.get(f"{OURS}/deleted?limit=1").json
    assert [(each["media_id"], each["reason"], each["by"]) for each in noted["deleted"]] == [
        (_id(files[0]), "administrator", root.user_id)
    ]
    rest = root.get(f"{OURS}/deleted?from={noted['next_token']}").json
    assert [each["media_id"] for each in rest["deleted"]] == [_id(files[1])]


def test_files_are_listed_by_date_and_size(
    people: tuple[User, User, User], network: Network
) -> None:
    alice, bob, root = people
    began = int(network.clock.seconds() * 1000)
    early = upload_file(bob, b"early")
    network.clock.advance(DAY)
    late, long = upload_file(bob, b"late"), upload_file(bob, b"long" * 100)
    bob.get(f"{DOWNLOAD}/{upload_file(alice, b'theirs')}")
    root.post(f"{ADMIN}/media/quarantine/{late}")

    def listed(query: str = "") -> set[str]:
        return {each["media_id"] for each in root.get(f"{OURS}?{query}").json["media"]}

    assert listed() == {_id(early), _id(late), _id(long)}
    assert listed(f"until_ts={began + 1}") == {_id(early)}
    assert listed(f"from_ts={began + 1}&size_gt=4") == {_id(long)}
    assert listed("quarantined=true") == {_id(late)}
    (copy,) = root.get(f"{OURS}?of=remote").json["media"]
    assert (copy["media_origin"], copy["media_length"]) == (NORTH, 6)
    assert root.get(f"{OURS}?of=remote&size_gt=6").json == {"media": []}
    found, token = [], ""
    for _ in range(4):
        page = root.get(f"{OURS}?limit=1&after={token}").json
        found += page["media"]
        token = page.get("next_token", "")
    assert [each["media_id"] for each in found] == sorted(_id(each) for each in (early, late, long))
    assert token == ""
    for query in (
        "limit=0",
        "size_gt=-2",
        f"until_ts={2**60}",
        "of=all",
        "after=x",
        "after=x/.",
        "user_id=x",
        "room_id=x",
    ):
        assert root.get(f"{OURS}?{query}").errcode == "M_INVALID_PARAM", query
    assert bob.get(OURS).errcode == "M_FORBIDDEN"


def test_old_files_are_deleted(people: tuple[User, User, User], network: Network) -> None:
    alice, bob, root = people
    small, large, held, face, copy = (
        upload_file(bob, b"small"),
        upload_file(bob, b"l" * 100),
        upload_file(bob, b"h" * 100),
        upload_file(bob, b"f" * 100),
        upload_file(alice, b"copy"),
    )
    bob.put(f"/_matrix/client/v3/profile/{bob.user_id}/avatar_url", {"avatar_url": f"mxc://{face}"})
    root.post(f"{ADMIN}/media/quarantine/{held}")
    bob.get(f"{DOWNLOAD}/{copy}")
    network.clock.advance(10 * DAY)
    late = upload_file(bob, b"t" * 100)
    before = int((network.clock.seconds() - DAY) * 1000)
    for path in (f"{ADMIN}/media/delete", f"{ADMIN}/purge_media_cache"):
        assert root.post(path).errcode == "M_MISSING_PARAM"
        assert root.post(f"{path}?before_ts=1700000000").errcode == "M_INVALID_PARAM"
    assert root.post(f"{ADMIN}/media/delete?before_ts={before}&size_gt=50").json[
        "deleted_media"
    ] == [_id(large)]
    assert root.post(f"{ADMIN}/media/{NORTH}/delete?before_ts={before}").status == 400
    path = f"{ADMIN}/media/{SOUTH}/delete?before_ts={before}&keep_profiles=false"
    assert set(root.post(path).json["deleted_media"]) == {_id(small), _id(face)}
    assert root.post(f"{ADMIN}/purge_media_cache?before_ts={before}").json == {"deleted": 1}
    assert _statuses(bob, small, large, face, late, copy) == [
        404,
        404,
        404,
        200,
        200,
    ]  # it was fetched again
    assert root.get(f"{ADMIN}/media/{held}").status == 200


@pytest.fixture
def chosen(people: tuple[User, User, User], network: Network) -> dict[str, str]:
    """Files of all kinds, by name, and `room`, `began`. Those named `old…` came a day before the
    others."""
    alice, bob, root = people
    files = {
        "old": upload_file(bob, b"old"),
        "old_long": upload_file(bob, b"old" * 100),
        "old_root": upload_file(root, b"root"),
    }
    theirs = {"old_theirs": upload_file(alice, b"theirs")}
    bob.get(f"{DOWNLOAD}/{theirs['old_theirs']}")
    began = int(network.clock.seconds() * 1000) + 1
    network.clock.advance(DAY)
    files |= {name: upload_file(bob, name.encode()) for name in ("new", "safe", "held", "shared")}
    theirs["theirs"] = upload_file(alice, b"theirs, and longer")
    bob.get(f"{DOWNLOAD}/{theirs['theirs']}")
    room, other = create(bob), create(bob)
    for name in ("old", "new", "shared"):
        say(bob, room, f"mxc://{files[name]}")
    say(bob, room, f"mxc://{theirs['theirs']}")
    say(bob, other, f"mxc://{files['shared']}")
    while bob.server.run(bob.server.app.media.maintenance.references.do_track(1000)):
        pass
    root.post(f"{ADMIN}/media/protect/{_id(files['safe'])}")
    root.post(f"{ADMIN}/media/quarantine/{files['held']}")
    return {**files, **theirs, "room": room, "began": str(began)}


CHOICES: dict[str, tuple[dict[str, object], set[str]]] = {
    "by user": ({"user_id": f"@root:{SOUTH}"}, {"old_root"}),
    "by room": ({"room_id": "room"}, {"old", "new", "shared"}),
    "by room alone": ({"room_id": "room", "only_in_room": True}, {"old", "new"}),
    "by day": ({"until_ts": "began"}, {"old", "old_long", "old_root"}),
    "by day and size": ({"until_ts": "began", "size_gt": 4}, {"old_long"}),
    "by user, day and size": (
        {"user_id": f"@bob:{SOUTH}", "until_ts": "began", "size_gt": 3},
        {"old_long"},
    ),
    "by room and day": ({"room_id": "room", "from_ts": "began"}, {"new", "shared"}),
    "by user and room": ({"room_id": "room", "user_id": f"@root:{SOUTH}"}, set()),
    "copies by room": ({"of": "remote", "room_id": "room"}, {"theirs"}),
    "copies by day": ({"of": "remote", "until_ts": "began"}, {"old_theirs"}),
    "copies by server and size": (
        {"of": "remote", "server_name": NORTH, "size_gt": 10},
        {"theirs"},
    ),
    "copies of another server": ({"of": "remote", "server_name": "east.example"}, set()),
}


def _choice(name: str, files: dict[str, str]) -> dict[str, object]:
    choice = {
        key: files["room"] if value == "room" else value for key, value in CHOICES[name][0].items()
    }
    return {
        key: int(files["began"]) if value == "began" else value for key, value in choice.items()
    }


def _query(choice: dict[str, object]) -> str:
    return urlencode(
        {key: str(value).lower() if value is True else value for key, value in choice.items()}
    )


def _addresses(files: dict[str, str], *names: str) -> set[str]:
    return {f"mxc://{files[name]}" for name in names}


@pytest.mark.parametrize("name", CHOICES)
def test_selected_files_can_be_quarantined_released_and_deleted(
    people: tuple[User, User, User], chosen: dict[str, str], name: str
) -> None:
    _, _, root = people
    choice, wanted = _choice(name, chosen), CHOICES[name][1]
    listed = root.get(f"{OURS}?{_query(choice)}").json["media"]
    assert {each["media_id"] for each in listed} == {_id(chosen[each]) for each in wanted}
    every = [each for each in chosen if each not in ("room", "began")]

    def held() -> set[str]:
        found = [root.get(f"{ADMIN}/media/{chosen[each]}") for each in every]
        return {
            each
            for each, info in zip(every, found, strict=True)
            if info.json["media_info"]["quarantined_by"]
        }

    answer = root.post(f"{OURS}/quarantine", choice).json
    assert (set(answer["media"]), answer["total"]) == (_addresses(chosen, *wanted), len(wanted))
    assert held() == wanted | {"held"}
    assert root.post(f"{OURS}/quarantine", choice).json == {"media": [], "total": 0}
    assert root.post(f"{OURS}/delete", choice).json == {"media": [], "total": 0}, (
        "what is held back stays"
    )
    answer = root.post(f"{OURS}/unquarantine", choice).json
    assert (set(answer["media"]), answer["total"]) == (_addresses(chosen, *wanted), len(wanted))
    assert held() == {"held"}

    answer = root.post(f"{OURS}/delete", choice).json
    assert (set(answer["media"]), answer["total"]) == (_addresses(chosen, *wanted), len(wanted))
    assert {
        each for each in every if root.get(f"{ADMIN}/media/{chosen[each]}").status == 404
    } == wanted


def test_protected_and_quarantined_files_are_deleted_only_if_selected_as_such(
    people: tuple[User, User, User], chosen: dict[str, str]
) -> None:
    _, bob, root = people
    mine = {"user_id": bob.user_id}
    assert set(
        root.post(f"{OURS}/delete", {**mine, "quarantined": True}).json["media"]
    ) == _addresses(chosen, "held")
    remaining = {"old", "old_long", "new", "shared"}
    assert set(
        root.post(f"{OURS}/protect", {"room_id": chosen["room"]}).json["media"]
    ) == _addresses(chosen, "old", "new", "shared")
    assert set(root.post(f"{OURS}/quarantine", mine).json["media"]) == _addresses(
        chosen, "old_long"
    )
    assert root.post(f"{OURS}/unquarantine", mine).json["total"] == 1
    assert set(root.post(f"{OURS}/delete", mine).json["media"]) == _addresses(chosen, "old_long")
    unprotected = root.post(f"{OURS}/unprotect", {**mine, "until_ts": int(chosen["began"])}).json
    assert set(unprotected["media"]) == _addresses(chosen, "old")
    left = root.post(f"{OURS}/delete", {**mine, "protected": True}).json
    assert set(left["media"]) == _addresses(chosen, "safe", "new", "shared")
    assert {
        each for each in remaining if root.get(f"{ADMIN}/media/{chosen[each]}").status == 200
    } == {"old"}


def test_many_files_are_processed_in_pages(people: tuple[User, User, User]) -> None:
    _, bob, root = people
    files = sorted(_id(upload_file(bob, b"%d" % number)) for number in range(5))
    choice: dict[str, object] = {"user_id": bob.user_id, "limit": 2}
    seen: list[str] = []
    while True:
        answer = root.post(f"{OURS}/quarantine", choice).json
        seen += answer["media"]
        if "next_token" not in answer:
            break
        choice["after"] = answer["next_token"]
    assert seen == [f"mxc://{SOUTH}/{each}" for each in files]
    choice = {"user_id": bob.user_id, "quarantined": True, "limit": 2}
    assert [root.post(f"{OURS}/delete", choice).json["total"] for _ in range(4)] == [2, 2, 1, 0]


def test_an_invalid_selection_is_refused(people: tuple[User, User, User]) -> None:
    _, bob, root = people
    upload_file(bob, b"tea")
    for act in ("delete", "quarantine", "unquarantine", "protect", "unprotect"):
        for everything in (
            {},
            {"of": "local"},
            {"limit": 1},
            {"quarantined": False},
            {"quarantined": True},
            {"protected": False},
            {"size_gt": -1},
            {"size_gt": 0},
            {"until_ts": 2**53 - 1},
            {"until_ts": int(bob.server.clock.seconds() * 1000) + 1},
            {"from_ts": -1},
            {"from_ts": 0, "until_ts": 2**53 - 1, "size_gt": 0},
        ):
            assert root.post(f"{OURS}/{act}", everything).errcode == "M_MISSING_PARAM", (
                act,
                everything,
            )
        assert bob.post(f"{OURS}/{act}", {"size_gt": 0}).errcode == "M_FORBIDDEN", act
        for wrong in (
            {"size_gte": 5},  # a name that is not known
            {"size_gt": -2},
            {"size_gt": 5, "limit": 0},
            {"size_gt": 5, "limit": 1001},
            {"size_gt": 5, "after": "x"},
            {"until_ts": 2**60},
            {"user_id": "bob"},
            {"room_id": "\0"},
            {"server_name": NORTH},
            {"of": "remote", "user_id": bob.user_id},
            {"of": "remote", "protected": True},
            {"size_gt": 5, "only_in_room": True},
        ):
            answer = root.post(f"{OURS}/{act}", wrong)
            assert (answer.status, answer.errcode in ("M_INVALID_PARAM", "M_BAD_JSON")) == (
                400,
                True,
            ), wrong
    assert root.post(f"{OURS}/protect", {"of": "remote", "size_gt": 5}).errcode == "M_INVALID_PARAM"
    assert len(root.get(OURS).json["media"]) == 1
