"""A closed federation: whose member list is accepted, which servers it admits, and what each of
them may do."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import LogEvent, capturedLogs

from federation.http_client.errors import OutboundError
from federation.peers.signed_list import MemberListTrust, read_signed_list
from federation.protocol.errors import Forbidden
from federation.protocol.ids import KeyID, RoomID, ServerName
from federation.protocol.member_list import BadMemberList, Right, parse_member_list, right_of
from federation.protocol.signing import encode_base64
from homeserver.cluster.jobs import Job
from homeserver.config.load import ConfigError
from homeserver.wiring.federation_peers import member_list_jobs
from tests.helpers.federated_rooms import texts
from tests.helpers.member_lists import DAY, ListAuthority, ListKey, a_list, sign_with_certificate
from tests.helpers.network import Network
from tests.helpers.room_actions import say
from tests.helpers.server import START, TestServer, User

NORTH, SOUTH, EAST = (
    ServerName("north.example"),
    ServerName("south.example"),
    ServerName("east.example"),
)
KEY = ListKey()
HOUR = 3600
PINNED = MemberListTrust((KEY.public,))


# ---- what a list is


def test_a_list_names_members_their_keys_and_denied_rights() -> None:
    keys = {"ed25519:a": encode_base64(bytes(range(32)))}
    payload = a_list(
        NORTH,
        {"server": "South.example", "verify_keys": keys, "deny": ["media", "writing"]},
        serial=7,
    )
    members = read_signed_list(KEY.sign(payload), PINNED, START)
    assert (members.name, members.serial) == ("test", 7)
    assert members.members["south.example"].keys == {KeyID("ed25519:a"): bytes(range(32))}
    assert members.members["south.example"].denied == {Right.MEDIA, Right.WRITING}
    assert members.members["north.example"].denied == frozenset()


@pytest.mark.parametrize(
    "payload",
    [
        b"[]",
        b"{",
        a_list("no name"),
        a_list(NORTH, "NORTH.example"),
        a_list({"server": NORTH, "deny": ["breathing"]}),
        a_list({"server": NORTH, "denied": ["media"]}),
        a_list({"server": NORTH, "verify_keys": {"ed25519:a": "short"}}),
        a_list({"server": NORTH, "verify_keys": {"rsa:a": encode_base64(bytes(32))}}),
        a_list(NORTH, serial=-1),
    ],
)
def test_a_malformed_list_is_refused(payload: bytes) -> None:
    with pytest.raises(BadMemberList):
        parse_member_list(payload)


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"a.b",
        b"a.b.c",
        b"x" * (9 << 20),
        ListKey(2).sign(a_list(NORTH)),
        KEY.sign(a_list(NORTH))[:-4] + b"AAAA",
        KEY.sign(a_list(NORTH, expires=START)),
        KEY.sign(a_list(NORTH, issued=START + DAY, expires=START + 2 * DAY)),
        b"eyJhbGciOiJub25lIn0." + KEY.sign(a_list(NORTH)).split(b".")[1] + b".",
    ],
    ids=[
        "empty",
        "two parts",
        "nonsense",
        "too long",
        "other key",
        "forged",
        "expired",
        "future",
        "no algorithm",
    ],
)
def test_a_list_without_a_trusted_signature_is_refused(document: bytes) -> None:
    with pytest.raises(BadMemberList):
        read_signed_list(document, PINNED, START)


def test_the_certificate_of_a_list_must_be_valid_for_its_signer() -> None:
    authority, other = ListAuthority(), ListAuthority("authority.example")
    trust = MemberListTrust(authorities=(authority.certificate,), signer="list.example")
    key, certificate = authority.issue("list.example")
    good = sign_with_certificate(a_list(NORTH), key, [certificate])
    assert "north.example" in read_signed_list(good, trust, START).members

    with pytest.raises(BadMemberList, match="certificate"):
        read_signed_list(good, trust, START + 20 * DAY)
    with pytest.raises(BadMemberList, match="is not for"):
        read_signed_list(
            sign_with_certificate(a_list(NORTH), *_chain(authority, "evil.example")), trust, START
        )
    with pytest.raises(BadMemberList, match="authority"):
        read_signed_list(
            sign_with_certificate(a_list(NORTH), *_chain(other, "list.example")), trust, START
        )
    stolen, _ = other.issue("list.example")
    with pytest.raises(BadMemberList, match="signature"):
        read_signed_list(sign_with_certificate(a_list(NORTH), stolen, [certificate]), trust, START)
    with pytest.raises(BadMemberList):  # a pinned key is no authority
        read_signed_list(good, PINNED, START)


def _chain(authority: ListAuthority, name: str) -> tuple[Any, list[Any]]:
    key, certificate = authority.issue(name)
    return key, [certificate]


@pytest.mark.parametrize(
    ("path", "right"),
    [
        ("/_matrix/federation/v2/invite/!a:b/$c", Right.INVITES),
        ("/_matrix/federation/v2/%69nvite/!a:b/$c", Right.INVITES),
        ("/_matrix/federation/v1/publicRooms?limit=1", Right.DIRECTORY),
        ("/_matrix/federation/v1/query/profile?user_id=x", Right.PROFILES),
        ("/_matrix/federation/v1/media/download/abc", Right.MEDIA),
        ("/_matrix/federation/v1/send/1", None),
        ("/_matrix/key/v2/server", None),
    ],
)
def test_each_path_needs_its_right(path: str, right: Right | None) -> None:
    assert right_of(path) is right


# ---- servers that go by one


class Address:
    """The address that the list is fetched from."""

    def __init__(self) -> None:
        self.document: bytes | None = None
        self.asked = 0

    async def fetch(self, url: str) -> bytes:
        assert url == "https://federation.example/members"
        self.asked += 1
        if self.document is None:
            raise OutboundError("nothing there")
        return self.document


def config(*, trust: ListKey = KEY, further: str = "") -> str:
    return (
        "federation_member_list: {url: 'https://federation.example/members', "
        f"verify_keys: ['{trust.text}']}}\n{further}"
    )


def start_list(server: TestServer) -> None:
    Deferred.fromCoroutine(server.app.peers.member_lists.start())


def refresh(server: TestServer) -> bool:
    found: list[bool] = []
    Deferred.fromCoroutine(server.app.peers.member_lists.refresh()).addCallback(found.append)
    return found[0]


class Closed:
    """North goes by the list; the others are as any server is."""

    def __init__(self, network: Network) -> None:
        self.address = Address()
        self.north = network.add(NORTH, config(), fetch=self.address.fetch)
        self.south, self.east = network.add(SOUTH), network.add(EAST)

    def say(self, *members: str | Mapping[str, Any], **about: Any) -> None:
        self.address.document = KEY.sign(a_list(*members, **about))
        if self.north.app.peers.policy.members is None:
            start_list(self.north)
        else:
            assert refresh(self.north)


@pytest.fixture
def closed(network: Network) -> Closed:
    return Closed(network)


def minutes(server: TestServer, count: int) -> None:
    """Let them pass, with the job that looks for lists."""
    (job,) = member_list_jobs(server.app.peers.member_lists)
    for _ in range(count):
        server.clock.advance(job.interval)
        server.run(take_step(job))


async def take_step(job: Job) -> None:
    assert await job.step(1) == 0


def ends(lines: Sequence[LogEvent]) -> list[str]:
    """Return the log lines about the end of lists."""
    return [line["warning"] for line in lines if "{warning}" in str(line.get("log_format"))]


def reaches(user: User, other: User) -> bool:
    answer = user.get(f"/_matrix/client/v3/profile/{other.user_id}")
    assert answer.status in (200, 403), answer.body
    return answer.status == 200


def test_members_are_contacted_and_others_are_not(closed: Closed) -> None:
    alice, bob, carol = (
        closed.north.register("alice"),
        closed.south.register("bob"),
        closed.east.register("carol"),
    )
    assert not reaches(alice, bob)  # no list yet
    closed.say(SOUTH)

    assert reaches(alice, bob)
    refused = alice.get(f"/_matrix/client/v3/profile/{carol.user_id}")
    assert refused.status == 403
    assert "no member of the federation" in refused.json["error"]
    assert not reaches(carol, alice)


def test_a_removed_member_is_denied_at_once_and_an_older_list_is_ignored(
    closed: Closed,
) -> None:
    alice, bob = closed.north.register("alice"), closed.south.register("bob")
    closed.say(SOUTH, serial=5)
    old = closed.address.document
    closed.say(EAST, serial=6)
    assert not reaches(alice, bob)

    closed.address.document = old
    assert not refresh(closed.north)
    assert not reaches(alice, bob)


def test_an_invalid_or_missing_list_leaves_the_last_valid_one_in_force(
    closed: Closed,
) -> None:
    alice, bob = closed.north.register("alice"), closed.south.register("bob")
    closed.say(SOUTH)
    for document in (None, b"nonsense", ListKey(9).sign(a_list(EAST, serial=9))):
        closed.address.document = document
        assert not refresh(closed.north)
        assert reaches(alice, bob)

    closed.north.clock.advance(DAY)
    assert not reaches(alice, bob)


def test_the_last_valid_list_survives_a_restart(closed: Closed, network: Network) -> None:
    closed.say(SOUTH, serial=5)
    closed.address.document = None
    restarted = network.rebuild(NORTH, config(), fetch=closed.address.fetch)
    start_list(restarted)
    assert reaches(restarted.register("alice"), closed.south.register("bob"))


def test_an_expired_list_is_not_followed_by_an_older_one_after_a_restart(
    closed: Closed, network: Network
) -> None:
    closed.say(SOUTH, serial=5)
    closed.north.clock.advance(DAY)
    closed.address.document = KEY.sign(a_list(SOUTH, serial=4, expires=START + 10 * DAY))
    restarted = network.rebuild(NORTH, config(), fetch=closed.address.fetch)
    start_list(restarted)
    assert not reaches(restarted.register("alice"), closed.south.register("bob"))


def test_a_list_is_read_from_a_file(network: Network, tmp_path: Path) -> None:
    path = tmp_path / "members.jws"
    path.write_bytes(KEY.sign(a_list(SOUTH)) + b"\n")
    north = network.add(
        NORTH, f"federation_member_list: {{path: '{path}', verify_keys: ['{KEY.text}']}}\n"
    )
    start_list(north)
    assert reaches(north.register("alice"), network.add(SOUTH).register("bob"))


def test_a_list_is_dropped_if_the_trusted_keys_change(closed: Closed, network: Network) -> None:
    alice, bob = closed.north.register("alice"), closed.south.register("bob")
    closed.say(SOUTH)
    other = network.add("other.example", config(trust=ListKey(2)))
    closed.north.app.reload(other.config)
    assert not reaches(alice, bob)
    closed.address.document = ListKey(2).sign(a_list(SOUTH))
    assert refresh(closed.north)
    assert reaches(alice, bob)


def test_only_pinned_keys_of_a_member_are_accepted(closed: Closed, network: Network) -> None:
    bob, alice = closed.south.register("bob"), closed.north.register("alice")
    true = closed.south.app.federation.identity.key
    keys = {true.key_id: encode_base64(true.public_key)}
    closed.say({"server": SOUTH, "verify_keys": keys})
    asked = len(network.log)
    assert reaches(bob, alice)
    assert not any(
        uri.startswith("/_matrix/key/") and to == SOUTH for _, to, _, uri in network.log[asked:]
    )

    closed.say(
        {"server": SOUTH, "verify_keys": {"ed25519:other": encode_base64(bytes(32))}}, serial=2
    )
    amy = closed.north.register("amy")  # of whom south has heard nothing yet
    assert bob.get(f"/_matrix/client/v3/profile/{amy.user_id}").status != 200


@pytest.mark.parametrize("right", ["profiles", "directory"])
def test_a_denied_right_applies_in_both_directions_and_to_nothing_else(
    closed: Closed, right: str
) -> None:
    alice, bob = closed.north.register("alice"), closed.south.register("bob")
    closed.say({"server": SOUTH, "deny": [right]})
    for user in (alice, bob):
        user.post("/_matrix/client/v3/createRoom", {"room_alias_name": "square"})

    assert reaches(alice, bob) == reaches(bob, alice) == (right != "profiles")
    for user, server in ((alice, SOUTH), (bob, NORTH)):
        found = user.get(f"/_matrix/client/v3/directory/room/%23square:{server}")
        assert found.status == (403 if right == "directory" else 200)


def test_invites_need_the_right_to_invite(closed: Closed) -> None:
    alice, bob = closed.north.register("alice"), closed.south.register("bob")
    closed.say({"server": SOUTH, "deny": ["invites"]})
    ours = alice.post("/_matrix/client/v3/createRoom", {"preset": "public_chat"}).json["room_id"]
    theirs = bob.post("/_matrix/client/v3/createRoom", {"preset": "public_chat"}).json["room_id"]
    invited = alice.post(f"/_matrix/client/v3/rooms/{ours}/invite", {"user_id": bob.user_id})
    assert invited.status == 403
    assert "invites" in invited.json["error"]
    assert (
        bob.post(f"/_matrix/client/v3/rooms/{theirs}/invite", {"user_id": alice.user_id}).status
        == 403
    )
    # but the door of a public room is open
    assert bob.post(f"/_matrix/client/v3/join/{ours}?via={NORTH}", {}).status == 200


def test_members_without_the_right_to_write_join_and_leave_but_cannot_send(
    closed: Closed, network: Network
) -> None:
    alice, bob = closed.north.register("alice"), closed.south.register("bob")
    closed.say({"server": SOUTH, "deny": ["writing"]})
    network.start_sending()
    room_id = alice.post("/_matrix/client/v3/createRoom", {"preset": "public_chat"}).json["room_id"]
    assert bob.post(f"/_matrix/client/v3/join/{room_id}?via={NORTH}", {}).status == 200
    bob.put(
        f"/_matrix/client/v3/rooms/{room_id}/send/m.room.message/1",
        {"msgtype": "m.text", "body": "from south"},
    )
    alice.put(
        f"/_matrix/client/v3/rooms/{room_id}/send/m.room.message/1",
        {"msgtype": "m.text", "body": "from north"},
    )
    network.settle()

    def bodies(user: User) -> list[str]:
        page = user.get(f"/_matrix/client/v3/rooms/{room_id}/messages?dir=b&limit=50").json["chunk"]
        return [event["content"]["body"] for event in page if event["type"] == "m.room.message"]

    assert bodies(alice) == ["from north"]
    assert set(bodies(bob)) == {"from north", "from south"}
    assert (
        bob.user_id
        in alice.get(f"/_matrix/client/v3/rooms/{room_id}/joined_members").json["joined"]
    )


def test_a_simulation_refuses_nothing(network: Network) -> None:
    address = Address()
    north = network.add(
        NORTH, config(further="federation_policy_simulation: true\n"), fetch=address.fetch
    )
    address.document = KEY.sign(a_list({"server": SOUTH, "deny": ["profiles"]}))
    start_list(north)
    alice, bob = north.register("alice"), network.add(SOUTH).register("bob")
    assert reaches(alice, bob)
    assert reaches(alice, network.add(EAST).register("carol"))
    pinned = {"ed25519:other": encode_base64(bytes(32))}
    address.document = KEY.sign(a_list({"server": SOUTH, "verify_keys": pinned}, serial=2))
    assert refresh(north)
    assert reaches(bob, alice)


def test_administrators_see_the_policy_in_force(closed: Closed) -> None:
    closed.say({"server": SOUTH, "deny": ["media"]}, serial=3)
    path = "/_mahalla/admin/v1/federation_policy"
    alice = closed.north.register("alice")
    assert alice.get(path).json["errcode"] == "M_FORBIDDEN"
    closed.north.run(closed.north.app.user_data.accounts.do_set_flags(alice.user_id, is_admin=True))

    said = alice.get(f"{path}?server={SOUTH}").json
    assert said["member_list"]["serial"] == 3
    assert said["member_list"]["members"] == [
        {"server": SOUTH, "verify_keys": [], "deny": ["media"]}
    ]
    assert said["server"]["allowed"]
    assert said["server"]["rights"] == {
        "invites": True,
        "media": False,
        "directory": True,
        "profiles": True,
        "writing": True,
    }
    other = alice.get(f"{path}?server={EAST}").json["server"]
    assert not other["allowed"]
    assert "no member" in other["reason"]
    with pytest.raises(Forbidden):
        closed.north.app.peers.policy.check_origin(EAST)


def test_a_missing_or_expiring_list_is_fetched_each_minute(closed: Closed) -> None:
    alice, bob = closed.north.register("alice"), closed.south.register("bob")
    minutes(closed.north, 1)
    assert not reaches(alice, bob)
    closed.address.document = KEY.sign(a_list(SOUTH, expires=START + 3 * HOUR))
    minutes(closed.north, 1)
    assert reaches(alice, bob)

    asked = closed.address.asked
    minutes(closed.north, 59)
    assert closed.address.asked == asked
    minutes(closed.north, 1)
    assert closed.address.asked == asked + 1

    closed.address.document = None
    minutes(closed.north, 120)
    assert not reaches(alice, bob)
    closed.address.document = KEY.sign(a_list(SOUTH, serial=2, expires=START + DAY))
    minutes(closed.north, 1)
    assert reaches(alice, bob)


def test_a_list_configured_by_a_reload_is_refreshed(network: Network) -> None:
    address = Address()
    north, other = network.add(NORTH, fetch=address.fetch), network.add("other.example", config())
    alice, bob = north.register("alice"), network.add(SOUTH).register("bob")
    address.document = KEY.sign(a_list(EAST))
    north.app.reload(other.config)
    assert not reaches(alice, bob)
    address.document = KEY.sign(a_list(SOUTH, serial=2))
    minutes(north, 60)
    assert reaches(alice, bob)


def test_the_log_warns_once_before_and_once_after_a_list_expires(
    closed: Closed,
) -> None:
    closed.say(SOUTH, expires=START + 3 * HOUR)
    with capturedLogs() as lines:
        minutes(closed.north, 119)
        assert ends(lines) == []
        minutes(closed.north, 30)
        assert ends(lines) == ["expires soon"]
        minutes(closed.north, 60)
    assert ends(lines) == ["expires soon", "has expired: all federation is refused"]


def test_messages_sent_while_the_list_is_expired_arrive_with_the_next_list(
    closed: Closed, network: Network
) -> None:
    alice, bob = closed.north.register("alice"), closed.south.register("bob")
    closed.say(SOUTH)
    network.start_sending()
    room_id = RoomID(
        alice.post("/_matrix/client/v3/createRoom", {"preset": "public_chat"}).json["room_id"]
    )
    assert bob.post(f"/_matrix/client/v3/join/{room_id}?via={NORTH}", {}).status == 200
    network.settle()
    closed.north.clock.advance(DAY)
    say(alice, room_id, "while it has expired")
    network.settle()
    assert texts(bob, room_id) == []

    closed.address.document = KEY.sign(a_list(SOUTH, serial=2, expires=START + 2 * DAY))
    assert refresh(closed.north)
    network.settle()
    assert texts(bob, room_id) == ["while it has expired"]


def test_administrators_see_a_list_that_has_expired(closed: Closed) -> None:
    closed.say(SOUTH, serial=3)
    alice = closed.north.register("alice")
    closed.north.run(closed.north.app.user_data.accounts.do_set_flags(alice.user_id, is_admin=True))
    closed.north.clock.advance(DAY)
    shown = alice.get("/_mahalla/admin/v1/federation_policy").json["member_list"]
    assert (shown["in_force"], shown["name"], shown["serial"]) == (False, "test", 3)


# ---- configuration


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{url: 'https://a.example', path: 'b', verify_keys: ['x']}", "either `url` or `path`"),
        ("{url: 'https://a.example'}", "needs `verify_keys` or `authorities`"),
        ("{verify_keys: ['Noi6WqcDj0QmPxCNQqgezwTlBKrfqehY1u2FyWP9uYw']}", "needs `url` or `path`"),
        ("{url: 'https://a.example', verify_keys: ['x']}", "is not a valid key"),
        (
            "{url: 'https://a.example', authorities: ['none.pem'], signer: a}",
            "has no readable certificates",
        ),
        ("{url: 'https://a.example', authorities: ['none.pem']}", "needs `signer`"),
    ],
)
def test_inconsistent_options_are_refused(network: Network, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        network.add(NORTH, f"federation_member_list: {text}\n")


@pytest.mark.parametrize(
    ("requested", "federates"),
    [
        ({}, False),
        ({"creation_content": {"m.federate": True}}, True),
        ({"invite": ["@bob:south.example"]}, True),
        ({"invite": ["@bob:north.example"]}, False),
    ],
)
def test_new_rooms_do_not_federate_if_so_configured(
    network: Network, requested: Mapping[str, Any], federates: bool
) -> None:
    north = network.add(NORTH, "rooms_federate_by_default: false\n")
    network.add(SOUTH).register("bob")
    north.register("bob")
    alice = north.register("alice")
    room_id = alice.post("/_matrix/client/v3/createRoom", dict(requested)).json["room_id"]
    create = alice.get(f"/_matrix/client/v3/rooms/{room_id}/state/m.room.create").json
    assert create.get("m.federate", True) is federates
