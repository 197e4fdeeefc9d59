"""Invites of several servers to one room that this server is not in."""

import pytest

from storage.engine.database import Database
from storage.rooms.memberships import MembershipStore, NewMembership
from storage.rooms.out_of_room_memberships import (
    MAX_QUEUED_INVITES,
    MayNotReplace,
    OutOfRoomMembershipStore,
    OutOfRoomRow,
)

USER = "@alice:example.org"


async def test_the_first_invite_is_shown_and_the_others_are_queued(database: Database) -> None:
    store, memberships = OutOfRoomMembershipStore(database), MembershipStore(database)
    room_nid = (await store.get_room("!r:a", "10", 1)).room_nid

    async def put(
        server: str, membership: str = "invite", sender: str | None = None, *, may_end: bool = False
    ) -> bool:
        sender = sender or f"@x:{server}"
        row = OutOfRoomRow(room_nid, USER, f"${membership}:{server}", server, "10", b"{}", b"[]")
        new = NewMembership(
            USER, membership, sender, is_local=True, display_name=server, avatar_url=None
        )
        return await store.set_out_of_room(
            row, new, lambda _kept, present: may_end or present.membership == "leave"
        )

    async def shown() -> tuple[str, str]:
        row = (await memberships.get_memberships(room_nid, [USER]))[USER]
        return row.membership, row.sender

    async def queued() -> list[str]:
        return [row.server for row in await store.get_queued_invites(room_nid, USER)]

    for server in ("a", "b", "c", "b"):
        assert await put(server)
    assert await shown() == ("invite", "@x:a")
    assert await queued() == ["c", "b"]
    with pytest.raises(MayNotReplace):
        await put("b", "leave")
    assert await put("a", "leave", may_end=True)
    assert await shown() == ("invite", "@x:c")
    assert [row.server for row in (await store.get_out_of_room(room_nid, [USER])).values()] == ["c"]
    assert await store.remove_queued_invites(room_nid, USER, ["$invite:a", "$invite:b"])
    assert not await store.remove_queued_invites(room_nid, USER, ["$invite:b"])
    for number in range(MAX_QUEUED_INVITES):
        assert await put(f"s{number}")
    with pytest.raises(MayNotReplace):
        await put("s")
    assert await put("s0"), "it replaces the queued invite of the same server"
    assert await put("c", "leave", USER, may_end=True)
    assert await shown() == ("leave", USER)
    assert await queued() == []
