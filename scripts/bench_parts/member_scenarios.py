"""Measures what a message costs in rooms with different numbers of local members, when no client
waits for new events. The costs should be equal."""

from collections.abc import Mapping, Sequence
from urllib.parse import quote

from bench_parts.bench import Bench, Scenario
from bench_parts.client import V3
from bench_parts.connection import Connection
from bench_parts.measurement import Figures
from bench_parts.sync_scenarios import named

MEMBERS = (10, 1000, 10_000)


def send_among(number: int) -> Scenario:
    """Return the scenario for a room with this many members."""

    async def scenario(bench: Bench, figures: Figures) -> None:
        members = bench.world.part_of(number)
        room = await bench.world.crowd(members)
        await _send(bench, figures, scenario.__name__, room, members)

    return named(
        scenario, f"send_among_{number}", f"A message in a room of {number:,} local members."
    )


def send_among_own_rules(number: int) -> Scenario:
    """Return the scenario for a room with this many members, nearly half of whom have custom push
    rules."""

    async def scenario(bench: Bench, figures: Figures) -> None:
        world = bench.world
        members = world.part_of(number)
        room = await world.crowd(members)
        people = await world.people(members)

        about_room = {"kind": "event_match", "key": "room_id", "pattern": room}
        rules: list[tuple[str, Mapping[str, object]]] = [
            (f"override/{quote(room, safe='')}", {"actions": [], "conditions": [about_room]}),
            (f"room/{quote(room, safe='')}", {"actions": []}),
            ("content/tea", {"actions": ["notify", {"set_tweak": "highlight"}], "pattern": "tea"}),
        ]
        wanted = [
            (people[at], *rules[kind])
            for kind, step in enumerate((5, 5, 20))
            for at in range(kind + 1, members, step)
        ]

        async def put(at: int, link: Connection) -> None:
            user, path, rule = wanted[at]
            await link.request("PUT", f"{V3}/pushrules/global/{path}", rule, user.token)

        await world.run(put, len(wanted), at_once=4)
        await _send(bench, figures, scenario.__name__, room, members)

    return named(
        scenario,
        f"send_among_own_rules_{number}",
        f"A message in a room of {number:,}: 20 % of the members have muted it, 20 % want "
        "mentions only and 5 % have a keyword.",
    )


async def _send(bench: Bench, figures: Figures, name: str, room: str, members: int) -> None:
    world = bench.world
    (sender,) = await world.people(1)
    await world.run(lambda _, link: world.client.send(link, sender, room), 5, at_once=1)
    async with bench.meter.measure(name, figures) as run:
        run.notes["members in the room"] = members
        await world.run(
            lambda _, link: world.client.send(link, sender, room),
            world.sizes.sends // 5,
            at_once=1,
            run=run,
        )


BY_MEMBERS: Sequence[Scenario] = (*map(send_among, MEMBERS), send_among_own_rules(MEMBERS[-1]))
