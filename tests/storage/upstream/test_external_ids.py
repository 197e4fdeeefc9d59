"""The tables of external ids, pending upstream sign-ins, and devices of upstream sessions."""

from storage.accounts.accounts import AccountRow, AccountStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.upstream.external_ids import ExternalIdRow, ExternalIdStore
from storage.upstream.login_flows import UpstreamFlowRow, UpstreamFlowStore
from storage.upstream.sessions import UpstreamSessionRow, UpstreamSessionStore

ALICE, BOB = "@alice:example.org", "@bob:example.org"


async def test_links_are_unique_on_both_sides(database: Database) -> None:
    store = ExternalIdStore(database)

    async def add(provider: str, subject: str, user_id: str) -> bool:
        return await database.write(
            "add", store.add_link, ExternalIdRow(provider, subject, user_id, 5)
        )

    assert await add("ldap", "1", ALICE)
    assert await add("ldap", "1", ALICE)
    assert not await add("ldap", "1", BOB)
    assert not await add("ldap", "2", ALICE)
    assert await add("cas", "1", ALICE)
    assert await store.get_link("ldap", "1") == ExternalIdRow("ldap", "1", ALICE, 5)
    assert await store.get_link("ldap", "2") is None
    links = await store.get_links_of_users([ALICE, BOB])
    assert {user_id: [link.provider for link in found] for user_id, found in links.items()} == {
        ALICE: ["cas", "ldap"]
    }


async def test_removal_from_the_directory_is_stored(database: Database) -> None:
    store, accounts = ExternalIdStore(database), AccountStore(database)
    for user_id in (ALICE, BOB):
        await database.write("add", accounts.add_account, AccountRow(user_id, None, 1))
        await database.write("add", store.add_link, ExternalIdRow("ldap", user_id, user_id, 5))
    assert await database.write("left", store.set_removed, "ldap", ALICE, 7)
    assert not await database.write("left", store.set_removed, "ldap", ALICE, 8)
    assert [link.removed_ts for link in await store.get_links_of_provider("ldap")] == [7, None]
    assert await database.write("left", store.set_removed, "ldap", ALICE, None)
    assert not await database.write("left", store.set_removed, "ldap", ALICE, None)
    await database.write("end", lambda txn: accounts.set_deactivated(txn, BOB, 9, erase=False))
    assert [link.user_id for link in await store.get_links_of_provider("ldap")] == [ALICE]


async def test_a_flow_is_taken_once_by_its_browser(database: Database) -> None:
    store = UpstreamFlowStore(database)
    row = UpstreamFlowRow("f" * 24, "away", b"browser", 100, "{}")
    await store.add_flow(row)
    assert await store.take_flow("x" * 24, "away", b"browser", 50) is None
    assert await store.take_flow(row.flow_id, "name", b"browser", 50) is None
    assert await store.take_flow(row.flow_id, "away", b"other", 50) is None
    assert await store.take_flow(row.flow_id, "away", b"browser", 100) is None
    assert await store.take_flow(row.flow_id, "away", b"browser", 99) == row
    assert await store.take_flow(row.flow_id, "away", b"browser", 99) is None
    await store.add_flow(row)
    assert await store.take_flow(row.flow_id, "away", None, 99) == row


async def test_expired_rows_are_removed(database: Database) -> None:
    store = UpstreamFlowStore(database)
    for number in range(3):
        await store.add_flow(UpstreamFlowRow(f"f{number}", "away", b"b", 100 + number, "{}"))
        assert await store.add_used_assertion(f"a{number}", 100 + number)
        assert not await store.add_used_assertion(f"a{number}", 100 + number)
    assert await store.remove_old(101, 10) == 4
    assert await store.remove_old(101, 10) == 0
    assert await store.take_flow("f2", "away", b"b", 1) is not None
    assert await store.add_used_assertion("a0", 100)


async def test_the_devices_of_a_session_are_found(database: Database) -> None:
    store = UpstreamSessionStore(database)
    rows = [
        UpstreamSessionRow(ALICE, "A", "oidc-x", "1", "s1"),
        UpstreamSessionRow(ALICE, "B", "oidc-x", "1", None),
        UpstreamSessionRow(BOB, "A", "oidc-y", "1", "s1"),
    ]

    def fill(txn: WriteTransaction) -> None:
        for row in rows:
            store.set_upstream_session(txn, row)

    await database.write("fill", fill)

    async def devices(subject: str | None, session: str | None) -> list[str]:
        found = await database.read("get", store.get_upstream_sessions, "oidc-x", subject, session)
        return sorted(row.device_id for row in found)

    assert await devices("1", None) == ["A", "B"]
    assert await devices(None, "s1") == ["A"]
    assert await devices("2", "s1") == []
    await database.write(
        "set", store.set_upstream_session, UpstreamSessionRow(ALICE, "A", "oidc-x", "1", "s2")
    )
    assert (await devices(None, "s1"), await devices(None, "s2")) == ([], ["A"])
    await database.write("remove", store.remove_devices, ALICE, ["A", "B"])
    assert await devices("1", None) == []
