"""The scenarios. Each prepares what it needs, which is not measured. Then it repeats one
operation."""

from collections.abc import Mapping
from secrets import token_hex
from time import perf_counter

from twisted.internet.task import deferLater

from bench_parts import processes
from bench_parts.bench import Bench, Scenario
from bench_parts.client import FULL
from bench_parts.connection import Connection
from bench_parts.encryption import keys_claim, keys_query, to_device
from bench_parts.measurement import Figures, percentile
from bench_parts.member_scenarios import BY_MEMBERS
from bench_parts.pollers import Pollers
from bench_parts.push_scenarios import push
from bench_parts.sync_scenarios import BY_ROOMS


async def send(bench: Bench, figures: Figures) -> None:
    """One message; 50 concurrent users in 20 rooms."""
    world, sizes = bench.world, bench.world.sizes
    rooms = await world.busy_rooms()
    people = await world.people(sizes.senders)
    async with bench.meter.measure("send", figures) as run:
        await world.run(
            lambda at, link: world.client.send(
                link, people[at % len(people)], rooms[at % len(rooms)]
            ),
            sizes.sends,
            at_once=sizes.senders,
            run=run,
        )


async def send_alone(bench: Bench, figures: Figures) -> None:
    """One message; one user, sequentially: the cost of a message that shares nothing with
    others."""
    world = bench.world
    room = (await world.busy_rooms())[0]
    (sender,) = await world.people(1)
    async with bench.meter.measure("send_alone", figures) as run:
        await world.run(
            lambda _, link: world.client.send(link, sender, room),
            world.sizes.sends // 5,
            at_once=1,
            run=run,
        )


async def fan_out(bench: Bench, figures: Figures) -> None:
    """One message in a room of 500, until all of 100 polling users have it. Latency: until the last
    has it."""
    world, sizes = bench.world, bench.world.sizes
    room = await world.crowd(sizes.fan_members)
    people = await world.people(sizes.fan_pollers)
    (connection,) = await world.connections(1)
    pollers = Pollers(world.client, people)
    await pollers.prepare(connection)
    pollers.start(await world.connections(len(people)))
    each: list[float] = []
    async with bench.meter.measure("fan_out", figures) as run:
        for _ in range(sizes.fan_messages):
            arrivals = await pollers.deliver(connection, people[0], room, token_hex(8))
            run.add(arrivals[-1])
            each.extend(arrivals)
        run.notes["deliveries per message"] = len(people)
        run.notes["ms until a user has it, p50"] = percentile(each, 0.5)
    await pollers.stop()
    connection.close()


async def initial_sync(bench: Bench, figures: Figures) -> None:
    """The initial /sync of a user in 200 rooms with 50 messages each, 20 of them returned."""
    world = bench.world
    reader, _ = await world.many_rooms()
    async with bench.meter.measure("initial_sync", figures) as run:
        await world.run(
            lambda _, link: world.client.sync(link, reader, filter=FULL),
            world.sizes.initial_syncs,
            at_once=1,
            run=run,
        )


async def sync_none(bench: Bench, figures: Figures) -> None:
    """/sync of that user without new events."""
    world = bench.world
    reader, _ = await world.many_rooms()
    (connection,) = await world.connections(1)
    since, _ = await world.client.sync(connection, reader)
    async with bench.meter.measure("sync_none", figures) as run:
        await world.run(
            lambda _, link: world.client.sync(link, reader, since),
            world.sizes.syncs,
            at_once=1,
            run=run,
        )
    connection.close()


async def sync_one(bench: Bench, figures: Figures) -> None:
    """/sync of that user with one new message."""
    world = bench.world
    reader, rooms = await world.many_rooms()
    (connection,) = await world.connections(1)
    since, _ = await world.client.sync(connection, reader)
    await world.client.send(connection, reader, rooms[len(rooms) // 2])
    async with bench.meter.measure("sync_one", figures) as run:
        await world.run(
            lambda _, link: world.client.sync(link, reader, since),
            world.sizes.syncs,
            at_once=1,
            run=run,
        )
    connection.close()


async def messages(bench: Bench, figures: Figures) -> None:
    """A page of 100 events, backwards through a room of 5,000."""
    world = bench.world
    room = await world.history()
    (reader,) = await world.people(1)
    (connection,) = await world.connections(1)
    start: str | None = None
    async with bench.meter.measure("messages", figures) as run:
        while True:
            started = perf_counter()
            start = await world.client.messages(connection, reader, room, start)
            run.add(connection.answered_at - started)
            if start is None:
                break
    connection.close()


async def _read_room(bench: Bench, figures: Figures, endpoint: str) -> None:
    world = bench.world
    room = await world.crowd(world.sizes.big_members)
    (reader,) = await world.people(1)
    async with bench.meter.measure(endpoint, figures) as run:
        await world.run(
            lambda _, link: world.client.read_room(link, reader, room, endpoint),
            world.sizes.reads,
            at_once=1,
            run=run,
        )


async def search(bench: Bench, figures: Figures) -> None:
    """A search in 3,000 messages (--search-messages): in turn a common word, two words, a rare
    word and a prefix."""
    world = bench.world
    words = await world.searchable_words()
    (reader,) = await world.people(1)
    terms = [words[0], f"{words[2]} {words[40]}", words[3000], words[10][:3]]
    async with bench.meter.measure("search", figures) as run:
        run.notes["messages"] = world.sizes.searched
        await world.run(
            lambda at, link: world.client.search(link, reader, terms[at % len(terms)]),
            world.sizes.searches,
            at_once=1,
            run=run,
        )


async def user_directory(bench: Bench, figures: Figures) -> None:
    """A search in the user directory by a prefix of a name, in a room of 500 members."""
    world, sizes = bench.world, bench.world.sizes
    await world.crowd(sizes.fan_members)
    (reader,) = await world.people(1)
    async with bench.meter.measure("user_directory", figures) as run:
        await world.run(
            lambda at, link: world.client.search_people(link, reader, f"user{at % 100}"),
            sizes.searches,
            at_once=1,
            run=run,
        )


async def hierarchy(bench: Bench, figures: Figures) -> None:
    """The complete hierarchy of a space with 500 rooms, in pages of 50, for a user who is in none
    of them."""
    world = bench.world
    space = await world.space()
    reader = (await world.people(2))[1]

    async def walk(_: int, link: Connection) -> None:
        found, start = await world.client.hierarchy(link, reader, space, None, 50)
        while start is not None:
            rooms, start = await world.client.hierarchy(link, reader, space, start, 50)
            found += rooms
        assert found == world.sizes.tree, f"the tree has {found} rooms"

    async with bench.meter.measure("hierarchy", figures) as run:
        run.notes["rooms"] = world.sizes.tree
        await world.run(walk, world.sizes.trees, at_once=1, run=run)


async def state(bench: Bench, figures: Figures) -> None:
    """The state of a room with 2,000 members."""
    await _read_room(bench, figures, "state")


async def members(bench: Bench, figures: Figures) -> None:
    """The members of a room with 2,000 members."""
    await _read_room(bench, figures, "members")


async def joined_members(bench: Bench, figures: Figures) -> None:
    """The joined members of a room with 2,000 members (/joined_members)."""
    await _read_room(bench, figures, "joined_members")


async def join(bench: Bench, figures: Figures) -> None:
    """Joins of a room with 2,000 members, sequentially."""
    world, sizes = bench.world, bench.world.sizes
    room = await world.crowd(sizes.big_members)
    joining_users = (await world.people(sizes.big_members + sizes.joins))[-sizes.joins :]
    async with bench.meter.measure("join", figures) as run:
        await world.run(
            lambda at, link: world.client.join(link, joining_users[at], room),
            sizes.joins,
            at_once=1,
            run=run,
        )


async def create_room(bench: Bench, figures: Figures) -> None:
    """Creation of a private room with a name."""
    world = bench.world
    (owner,) = await world.people(1)
    async with bench.meter.measure("create_room", figures) as run:
        await world.run(
            lambda at, link: world.client.create_room(
                link, owner, name=f"New {at}", preset="private_chat"
            ),
            world.sizes.creations,
            at_once=1,
            run=run,
        )


async def idle(bench: Bench, figures: Figures) -> None:
    """Waking 1,000 polling users in one room. The notes show what they cost while they wait."""
    world, sizes = bench.world, bench.world.sizes
    room = await world.crowd(max(sizes.idle, sizes.big_members))
    people = await world.people(sizes.idle)
    (connection,) = await world.connections(1)
    pollers = Pollers(world.client, people)
    await pollers.prepare(connection)
    before_kb = processes.memory_kb(bench.meter.server_pids())
    pollers.start(await world.connections(len(people)))
    await bench.meter.until_quiet()
    grown_kb = processes.memory_kb(bench.meter.server_pids()) - before_kb
    cpu_before = sum(bench.meter.cpu())
    await deferLater(bench.clock, sizes.idle_seconds)
    idle_share = (sum(bench.meter.cpu()) - cpu_before) / sizes.idle_seconds
    async with bench.meter.measure("idle", figures) as run:
        for _ in range(sizes.wakes):
            run.add((await pollers.deliver(connection, people[0], room, token_hex(8)))[-1])
            await bench.meter.until_quiet()
        run.notes["users woken"] = len(people)
        run.notes["kB per waiting connection"] = grown_kb / len(people)
        run.notes["% of a core while all wait"] = idle_share * 100
    figures.per_second = 1000 / figures.p50_ms  # without the pauses
    await pollers.stop()
    connection.close()


async def start_up(bench: Bench, figures: Figures) -> None:
    """The time from the start of the process to its first response, with the data of the other
    scenarios."""
    times: list[float] = []
    cpu = 0.0
    for _ in range(bench.world.sizes.starts):
        bench.server.stop()
        times.append(await bench.server.start(cheap_passwords=True))
        cpu += processes.cpu_seconds(bench.server.pid)
    figures.operations = len(times)
    figures.seconds = sum(times)
    figures.cpu_ms = cpu * 1000 / len(times)
    figures.per_second = len(times) / sum(times)
    figures.p50_ms, figures.p95_ms, figures.p99_ms = (
        percentile(times, share) for share in (0.5, 0.95, 0.99)
    )
    figures.peak_mb = processes.peak_memory_kb(bench.meter.server_pids()) / 1024


async def _with_real_passwords(bench: Bench, operation: Scenario, to: Figures) -> None:
    bench.server.stop()
    await bench.server.start(cheap_passwords=False)
    await operation(bench, to)
    bench.server.stop()
    await bench.server.start(cheap_passwords=True)


async def _register(bench: Bench, figures: Figures) -> None:
    world, tag = bench.world, token_hex(4)
    async with bench.meter.measure("register", figures) as run:
        await world.run(
            lambda at, link: world.client.register(link, f"{tag}-{at}"),
            world.sizes.sign_ins,
            at_once=2,
            run=run,
        )


async def _login(bench: Bench, figures: Figures) -> None:
    world = bench.world
    (connection,) = await world.connections(1)
    user = await world.client.register(connection, token_hex(8))
    connection.close()
    async with bench.meter.measure("login", figures) as run:
        await world.run(
            lambda _, link: world.client.login(link, user.user_id),
            world.sizes.sign_ins,
            at_once=2,
            run=run,
        )


async def register(bench: Bench, figures: Figures) -> None:
    """Registration, two concurrent. Nearly all of it is the password hash, which is slow on
    purpose."""
    await _with_real_passwords(bench, _register, figures)


async def login(bench: Bench, figures: Figures) -> None:
    """Login with a password, two concurrent. Nearly all of it is the check of the password."""
    await _with_real_passwords(bench, _login, figures)


SCENARIOS: Mapping[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        send,
        send_alone,
        *BY_MEMBERS,
        fan_out,
        push,
        initial_sync,
        sync_none,
        sync_one,
        *BY_ROOMS,
        messages,
        search,
        user_directory,
        hierarchy,
        state,
        members,
        joined_members,
        join,
        create_room,
        keys_query,
        keys_claim,
        to_device,
        idle,
        start_up,
        register,
        login,
    )
}
"""By name, in the order in which they run."""
