"""Measures the costs of sync by the number of rooms of an account. They should grow with the number
of changes, not with the number of rooms."""

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from twisted.internet.defer import Deferred

from bench_parts.bench import Bench, Scenario
from bench_parts.client import FULL
from bench_parts.measurement import Figures

ACCOUNTS = (50, 500, 5000)
"""The numbers of rooms of the accounts."""


async def sync_one_of_many(bench: Bench, figures: Figures) -> None:
    """/sync of an account with 5,000 rooms and one new message."""
    world = bench.world
    user, rooms = await world.account(ACCOUNTS[-1])
    (connection,) = await world.connections(1)
    since, _ = await world.client.sync(connection, user, filter=FULL)
    await world.client.send(connection, user, rooms[len(rooms) // 2])
    async with bench.meter.measure("sync_one_of_many", figures) as run:
        await world.run(
            lambda _, link: world.client.sync(link, user, since),
            world.sizes.syncs,
            at_once=1,
            run=run,
        )
    connection.close()


def first_sliding(number: int) -> Scenario:
    """Return the scenario for an account with this many rooms."""

    async def scenario(bench: Bench, figures: Figures) -> None:
        world = bench.world
        user, _ = await world.account(number)
        (connection,) = await world.connections(1)
        # warm up: the first reads after a start are not measured
        await world.client.slide(connection, user)
        connection.close()
        async with bench.meter.measure(scenario.__name__, figures) as run:
            run.notes["rooms"] = world.size_of(number)
            await world.run(
                lambda _, link: world.client.slide(link, user),
                world.sizes.reads * 10,
                at_once=1,
                run=run,
            )

    return named(
        scenario,
        f"sliding_{number}",
        f"The first sliding sync of 20 rooms, of an account with {number:,}.",
    )


def sliding_none(number: int) -> Scenario:
    """Return the scenario for an account with this many rooms."""

    async def scenario(bench: Bench, figures: Figures) -> None:
        world = bench.world
        user, _ = await world.account(number)
        (connection,) = await world.connections(1)
        pos = await world.client.slide(connection, user)
        pos = await world.client.slide(connection, user, pos)
        connection.close()
        async with bench.meter.measure(scenario.__name__, figures) as run:
            await world.run(
                lambda _, link: world.client.slide(link, user, pos),
                world.sizes.syncs,
                at_once=1,
                run=run,
            )

    return named(
        scenario,
        f"sliding_none_{number}",
        f"Sliding sync without new events, of an account with {number:,} rooms.",
    )


def sliding_one(number: int) -> Scenario:
    """Return the scenario for an account with this many rooms."""

    async def scenario(bench: Bench, figures: Figures) -> None:
        world = bench.world
        user, rooms = await world.account(number)
        (connection,) = await world.connections(1)
        pos = await world.client.slide(connection, user)
        await world.client.send(connection, user, rooms[-1])
        connection.close()
        async with bench.meter.measure(scenario.__name__, figures) as run:
            await world.run(
                lambda _, link: world.client.slide(link, user, pos),
                world.sizes.syncs,
                at_once=1,
                run=run,
            )

    return named(
        scenario,
        f"sliding_one_{number}",
        f"Sliding sync with one message, of an account with {number:,} rooms.",
    )


def named(
    scenario: Callable[[Bench, Figures], Coroutine[Deferred[Any], Any, None]], name: str, doc: str
) -> Scenario:
    """Name and describe the scenario."""
    scenario.__name__, scenario.__doc__ = name, doc
    return scenario


BY_ROOMS: Sequence[Scenario] = (
    *(make(number) for make in (first_sliding, sliding_none, sliding_one) for number in ACCOUNTS),
    sync_one_of_many,
)
