"""The lease of a node: taken at once from a node that is known to be gone."""

import pytest

from storage.cluster.leases import LeaseStore
from storage.cluster.node_lease import NodeLease
from storage.engine.database import Database


@pytest.mark.parametrize("holder", ["1234", "a@0", "a@", "a@b", "a@-1"])
async def test_a_lease_of_an_unknown_node_is_taken_after_it_expires(
    postgres_database: Database, holder: str
) -> None:
    assert (
        await LeaseStore(database=postgres_database, name="push").take(
            holder, 1000, 31_000, force=False
        )
        is not None
    )
    lease = NodeLease(database=postgres_database, name="push", process="b", get_node=lambda: 7)
    for now in (2000, 12_000, 22_000):
        assert await lease.take(now, now + 30_000) is None
    assert await lease.take(32_000, 62_000) is not None


async def test_a_lease_of_a_vanished_node_is_taken_at_once(postgres_database: Database) -> None:
    assert (
        await LeaseStore(database=postgres_database, name="push").take(
            "a@5", 1000, 31_000, force=False
        )
        is not None
    )
    assert (
        await NodeLease(
            database=postgres_database, name="push", process="b", get_node=lambda: 7
        ).take(2000, 32_000)
        is not None
    )
    assert await LeaseStore(database=postgres_database, name="push").get_holder() == "b@7"


async def test_a_lease_is_not_taken_from_a_holder_that_just_took_it(
    postgres_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another node takes it just before."""
    store = LeaseStore(database=postgres_database, name="push")
    assert await store.take("a@5", 1000, 31_000, force=False) is not None

    async def get_nodes() -> set[int]:
        await store.take("c@6", 2000, 32_000, force=False, replacing="a@5")
        return {6, 7}

    monkeypatch.setattr(postgres_database, "get_nodes", get_nodes)
    assert (
        await NodeLease(
            database=postgres_database, name="push", process="b", get_node=lambda: 7
        ).take(2000, 32_000)
        is None
    )
    assert await store.get_holder() == "c@6"
