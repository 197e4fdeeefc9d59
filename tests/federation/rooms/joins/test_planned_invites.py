"""Room creation with invites of remote users: slow servers, and a restart before all invites are
sent."""

from typing import Any

import pytest
from twisted.logger import capturedLogs

from federation.protocol.ids import EventID, RoomID, UserID
from federation.rooms.joins import planned_invites
from federation.rooms.joins.invites import Invitations
from federation.rooms.joins.planned_invites import LEASE_MS
from storage.accounts.accounts import AccountStore
from storage.accounts.validity import AccountValidityStore
from storage.engine.transaction import WriteTransaction
from storage.rooms.pending_invites import PendingInviteStore
from tests.helpers.http import Pending
from tests.helpers.network import Fate, Network
from tests.helpers.remote_membership import (
    NORTH,
    SOUTH,
    WEST,
    is_known,
    knock_via,
    members,
    rooms_in_sync,
)
from tests.helpers.room_actions import V3, create, get_state, join, leave, membership, ok
from tests.helpers.server import User

VALIDITY = "account_validity: {enabled: true, period: 1w}\n"
BOB, CAROL, DORA, EMIL = (
    f"@bob:{SOUTH}",
    f"@carol:{WEST}",
    "@dora:gone.example",
    "@emil:gone.example",
)


def people(network: Network, config: str = "") -> tuple[User, User, User]:
    """Somebody on each of three servers; `config`: of the first."""
    alice, bob = network.add(NORTH, config).register("alice"), network.add(SOUTH).register("bob")
    return alice, bob, network.add(WEST).register("carol")


def resume(alice: User) -> int:
    """Run the job; return in how many rooms it resumes."""
    planned = alice.server.app.federated_rooms.planned_invites
    return alice.server.run(planned.do_resume(50))


def make_slowly(
    network: Network, config: str = "", **further: Any
) -> tuple[User, User, User, Pending]:
    """Somebody makes a room and invites others into it, two of whom are of a server that never
    answers; who comes after them is invited forty seconds later."""
    alice, bob, carol = people(network, config)
    network.choose_fate = lambda transfer: (
        Fate.IS_NOT_ANSWERED if transfer.destination == "gone.example" else Fate.ARRIVES
    )
    body = {"invite": [BOB, DORA, EMIL, CAROL], **further}
    return alice, bob, carol, alice.start("POST", f"{V3}/createRoom", body)


def test_silent_servers_do_not_delay_a_new_room(network: Network) -> None:
    alice, bob, carol = people(network)
    silent = [f"@dora:gone{number}.example" for number in range(3)]
    network.choose_fate = lambda transfer: (
        Fate.IS_NOT_ANSWERED if transfer.destination.startswith("gone") else Fate.ARRIVES
    )
    invited = [bob.user_id, *silent, carol.user_id]

    making = alice.start("POST", f"{V3}/createRoom", {"invite": invited, "is_direct": True})
    network.clock.advance(25)

    room_id = ok(making.answer)["room_id"]
    assert members(alice, room_id) == {alice.user_id: "join", bob.user_id: "invite"}
    for _ in range(5):
        network.clock.advance(60)
    assert get_state(alice, room_id, "m.room.member", carol.user_id) == {
        "membership": "invite",
        "is_direct": True,
    }
    assert room_id in rooms_in_sync(carol, "invite")


@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize("end", ["stop", "crash"])
def test_planned_invites_survive_a_restart(
    network: Network, monkeypatch: pytest.MonkeyPatch, *, end: str, answered: bool
) -> None:
    """`answered`: who made the room has it when the server ends; else it ends before."""
    alice, bob, carol, making = make_slowly(network, is_direct=True)
    network.clock.advance(25 if answered else 1)
    assert making.done is answered
    (room_id,) = rooms_in_sync(bob, "invite")
    leave(bob, room_id)

    if end == "crash":
        monkeypatch.setattr(PendingInviteStore, "end_lease", nothing)
    alice.server = network.rebuild(NORTH)
    if end == "crash":
        assert resume(alice) == 0, "whoever was at it may be there still"
        network.clock.advance(LEASE_MS / 1000)
    assert resume(alice) == 1
    assert resume(alice) == 0
    for _ in range(3):
        network.clock.advance(60)

    assert get_state(alice, room_id, "m.room.member", carol.user_id) == {
        "membership": "invite",
        "is_direct": True,
    }
    assert room_id in rooms_in_sync(carol, "invite")
    assert members(alice, room_id)[bob.user_id] == "leave"
    network.clock.advance(LEASE_MS / 1000)
    assert resume(alice) == 0, "that nobody answers is no reason to ask for ever"


def test_a_single_node_resumes_planned_invites_at_its_start(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob, carol, _ = make_slowly(network)
    network.clock.advance(25)
    (room_id,) = rooms_in_sync(bob, "invite")
    monkeypatch.setattr(PendingInviteStore, "end_lease", nothing)
    alice.server = network.rebuild(NORTH)
    alice.server.app.federated_rooms.planned_invites.start()
    assert not is_known(carol, room_id), "each has its turn"
    for _ in range(3):
        network.clock.advance(21)
    assert members(alice, room_id)[carol.user_id] == "invite"
    network.clock.advance(LEASE_MS / 1000)
    assert resume(alice) == 0


async def nothing(*_: object) -> None:
    """Do what a killed server does: nothing."""


def test_new_rooms_do_not_delay_resumed_invites(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planned_invites, "MAX_RESUMED_ROOMS", 1)
    alice, bob, carol, _ = make_slowly(network)
    (room_id,) = rooms_in_sync(bob, "invite")
    alice.server = network.rebuild(NORTH)
    making = alice.start("POST", f"{V3}/createRoom", {"invite": [DORA]})
    assert (making.done, resume(alice)) == (False, 1)
    for _ in range(3):
        network.clock.advance(21)
    assert list(rooms_in_sync(carol, "invite")) == [room_id]


def test_a_stopping_server_starts_no_invite(network: Network) -> None:
    """A request that is under way while the server stops makes its room; the invites are sent after
    the next start."""
    alice, bob, _ = people(network)
    alice.server.app.federated_rooms.planned_invites.stop()

    room_id = create(alice, invite=[bob.user_id])

    alice.server = network.rebuild(NORTH)
    assert resume(alice) == 1
    assert room_id in rooms_in_sync(bob, "invite")


def test_a_failed_invite_does_not_block_the_others(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob, carol = people(network)
    do_invite = Invitations.do_invite

    async def fail(
        self: Invitations, room_id: RoomID, sender: UserID, target: UserID, content: Any, **how: Any
    ) -> EventID:
        if target == bob.user_id:
            raise ValueError("nobody has thought of that")
        return await do_invite(self, room_id, sender, target, content, **how)

    monkeypatch.setattr(Invitations, "do_invite", fail)
    with capturedLogs() as logs:
        room_id = create(alice, invite=[bob.user_id, carol.user_id])
    assert [str(log["log_failure"].value) for log in logs if "log_failure" in log] == [
        "nobody has thought of that"
    ]
    assert room_id in rooms_in_sync(carol, "invite")
    network.clock.advance(LEASE_MS / 1000)
    assert resume(alice) == 0


def test_a_user_who_knocked_meanwhile_is_invited(network: Network) -> None:
    rules = {"type": "m.room.join_rules", "content": {"join_rule": "knock"}}
    alice, bob, carol, _ = make_slowly(network, initial_state=[rules])
    (room_id,) = rooms_in_sync(bob, "invite")
    ok(knock_via(carol, room_id, NORTH))
    for _ in range(3):
        network.clock.advance(21)
    assert members(alice, room_id)[carol.user_id] == "invite"


@pytest.mark.parametrize("gone", ["inviter", "invited"])
def test_a_planned_invite_that_is_not_allowed_any_more_is_not_sent(
    network: Network, gone: str
) -> None:
    alice, bob, carol, _ = make_slowly(network)
    network.start_sending()
    (room_id,) = rooms_in_sync(bob, "invite")
    join(bob, room_id)
    if gone == "inviter":
        leave(alice, room_id)
    else:
        ok(membership(alice, room_id, "ban", carol))
    for _ in range(3):
        network.clock.advance(21)
    assert members(bob, room_id).get(carol.user_id) == (None if gone == "inviter" else "ban")
    assert not is_known(carol, room_id)
    network.clock.advance(LEASE_MS / 1000)
    assert resume(alice) == 0


@pytest.mark.parametrize(
    "standing", ["locked", "suspended", "shadow_banned", "deactivated", "awaiting", "expired"]
)
@pytest.mark.parametrize("end", [True, False])
def test_an_account_that_may_not_act_sends_no_planned_invites(
    network: Network, standing: str, end: bool
) -> None:
    """`end`: it is so after a restart, and not only while the others are invited."""
    alice, _, carol, making = make_slowly(network, VALIDITY)
    network.clock.advance(21)
    room_id = ok(making.answer)["room_id"]
    if end:
        alice.server = network.rebuild(NORTH, VALIDITY)
    set_standing(alice, standing)
    assert resume(alice) == end
    for _ in range(3):
        network.clock.advance(21)
    assert not is_known(carol, room_id)
    network.clock.advance(LEASE_MS / 1000)
    assert resume(alice) == 0, "it is done with"


def set_standing(user: User, standing: str) -> None:
    accounts = AccountStore(user.server.app.database)

    def write(txn: WriteTransaction) -> None:
        if standing == "deactivated":
            accounts.set_deactivated(txn, user.user_id, 1, erase=False)
        elif standing == "awaiting":
            accounts.set_awaiting(txn, user.user_id, 1)
        elif standing == "expired":
            AccountValidityStore(database=user.server.app.database, accounts=accounts).set_expiry(
                txn, user.user_id, 1
            )
        else:
            accounts.set_flags(txn, user.user_id, **{standing: True})

    user.server.run(user.server.app.database.write("set_standing", write))
