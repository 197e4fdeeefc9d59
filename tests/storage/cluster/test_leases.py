"""Leases, on both databases."""

from storage.cluster.leases import LeaseStore
from storage.engine.database import Database


async def test_the_lease_has_one_holder(database: Database) -> None:
    lease = LeaseStore(database=database, name="federation")
    first = await lease.take("a", 1000, 31_000, force=False)
    assert first is not None

    assert await lease.take("b", 2000, 32_000, force=False) is None
    assert await lease.renew("a", 33_000, first.position + 5)
    assert await lease.take("b", 32_000, 62_000, force=False) is None

    second = await lease.take("b", 33_000, 63_000, force=False)
    assert second is not None
    assert (second.epoch, second.position) == (first.epoch + 1, first.position + 5)
    assert not await lease.renew("a", 64_000, 99)
    third = await lease.take("c", 34_000, 64_000, force=True)
    assert third is not None
    assert third.position == first.position + 5
    other = await LeaseStore(database=database, name="push").take("a", 1000, 31_000, force=False)
    assert other is not None
    assert other.epoch == 1


async def test_a_renewal_whose_response_was_lost_can_be_repeated(database: Database) -> None:
    lease = LeaseStore(database=database, name="push")
    assert await lease.take("a", 1000, 31_000, force=False) is not None
    assert await lease.renew("a", 31_000, 5, name="b")
    assert await lease.renew("a", 41_000, 6, name="b"), "the connection broke during the renewal"
    assert not await lease.renew("a", 41_000, 6, name="c")


async def test_a_lease_is_taken_only_from_the_named_holder(database: Database) -> None:
    lease = LeaseStore(database=database, name="push")
    assert await lease.get_holder() is None
    assert await lease.take("a", 1000, 31_000, force=False) is not None
    assert await lease.renew("a", 31_000, 5, name="b")
    assert await lease.get_holder() == "b"
    assert not await lease.renew("a", 31_000, 5)
    assert await lease.take("c", 2000, 32_000, force=False, replacing="a") is None
    taken = await lease.take("c", 2000, 32_000, force=False, replacing="b")
    assert taken is not None
    assert taken.position == 5
