"""The users and rooms of the scenarios, each created when the first scenario asks for it.

Also runs many operations concurrently, bounded in number and time.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from time import perf_counter

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.task import deferLater

from bench_parts.client import Client, User
from bench_parts.connection import Connection, connect
from bench_parts.filling import fill
from bench_parts.measurement import Run
from bench_parts.server import Server

FILLED_DIRECTLY = 200_000
"""More messages than this are stored directly instead of sent."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of the scenarios."""

    sign_ins: int = 30
    senders: int = 50
    busy_rooms: int = 20
    sends: int = 3000
    fan_members: int = 500
    fan_pollers: int = 100
    fan_messages: int = 15
    rooms: int = 200
    messages_per_room: int = 50
    account_part: int = 1
    """The divisor for the rooms of accounts, and for the members of large rooms."""
    initial_syncs: int = 10
    syncs: int = 1000
    history: int = 5000
    big_members: int = 2000
    reads: int = 10
    searched: int = 3000
    """Messages to search."""
    searches: int = 100
    tree: int = 500
    """Rooms below a space."""
    trees: int = 50
    key_requests: int = 2000
    """Key queries and claims."""
    devices: int = 1000
    key_shares: int = 30
    joins: int = 100
    creations: int = 100
    idle: int = 1000
    idle_seconds: float = 10.0
    wakes: int = 5
    starts: int = 3
    seconds: float = 30.0
    """The time after which a scenario starts no further operation."""


QUICK = Sizes(
    sign_ins=8,
    sends=600,
    fan_members=100,
    fan_pollers=40,
    fan_messages=8,
    rooms=40,
    messages_per_room=20,
    account_part=10,
    initial_syncs=5,
    syncs=200,
    history=600,
    searched=500,
    searches=30,
    tree=100,
    trees=10,
    big_members=300,
    reads=5,
    key_requests=300,
    devices=200,
    key_shares=10,
    joins=30,
    creations=20,
    idle=200,
    idle_seconds=3.0,
    wakes=3,
    starts=1,
    seconds=10.0,
)


class World:
    """The users and rooms on the server so far."""

    def __init__(self, reactor: EPollReactor, server: Server, sizes: Sizes) -> None:
        self._reactor = reactor
        self._server = server
        self.sizes = sizes
        self.client = Client()
        self._people: list[User] = []
        self._busy_rooms: list[str] = []
        self._synced: tuple[User, list[str]] | None = None
        self._history: str | None = None
        self._words: Sequence[str] | None = None
        self._crowds: dict[int, str] = {}
        self._space: str | None = None
        self._accounts: dict[int, tuple[User, Sequence[str]]] = {}

    async def connections(self, number: int) -> list[Connection]:
        return [await connect(self._reactor, self._server.port) for _ in range(number)]

    async def run(
        self,
        operation: Callable[[int, Connection], Awaitable[object]],
        times: int,
        *,
        at_once: int,
        run: Run | None = None,
    ) -> None:
        """Call `operation(number, connection)` `times` times on `at_once` connections, measured by
        `run` if given.

        Each connection starts its next operation when it has its response. Without `run`, all
        operations are done, however long it takes.
        """
        connections = await self.connections(at_once)
        numbers = iter(range(times))
        ends = perf_counter() + self.sizes.seconds

        async def work(connection: Connection) -> None:
            for number in numbers:
                started = perf_counter()
                if run is not None and started > ends:
                    return
                await operation(number, connection)
                if run is not None:
                    run.add(connection.answered_at - started)

        await gatherResults(
            [Deferred.fromCoroutine(work(connection)) for connection in connections]
        )
        for connection in connections:
            connection.close()

    async def people(self, number: int) -> Sequence[User]:
        """Return the first users; the same ones each time."""
        have = len(self._people)
        made: dict[int, User] = {}

        async def register(at: int, connection: Connection) -> None:
            made[have + at] = await self.client.register(connection, f"user{have + at}")

        await self.run(register, max(0, number - have), at_once=8)
        self._people.extend(user for _, user in sorted(made.items()))
        return self._people[:number]

    async def busy_rooms(self) -> Sequence[str]:
        """Return rooms in which all senders are."""
        if not self._busy_rooms:
            people = await self.people(self.sizes.senders)
            (connection,) = await self.connections(1)
            for number in range(self.sizes.busy_rooms):
                self._busy_rooms.append(
                    await self.client.create_room(connection, people[0], name=f"Busy {number}")
                )
            connection.close()
            joins = [(user, room) for user in people[1:] for room in self._busy_rooms]
            await self.run(
                lambda at, link: self.client.join(link, *joins[at]), len(joins), at_once=8
            )
        return self._busy_rooms

    async def many_rooms(self) -> tuple[User, Sequence[str]]:
        """Return a user in many rooms with three active members each."""
        if self._synced is None:
            people = await self.people(12)
            reader, friends = people[0], people[2:]
            (connection,) = await self.connections(1)
            rooms = [
                await self.client.create_room(connection, reader, name=f"Room {number}")
                for number in range(self.sizes.rooms)
            ]
            connection.close()
            joins = [
                (friends[(at + step) % 10], room)
                for at, room in enumerate(rooms)
                for step in (0, 3)
            ]
            await self.run(
                lambda at, link: self.client.join(link, *joins[at]), len(joins), at_once=8
            )

            async def send(at: int, link: Connection) -> None:
                index, room = divmod(at, len(rooms))
                sender = (reader, friends[room % 10], friends[(room + 3) % 10])[index % 3]
                await self.client.send(link, sender, rooms[room])

            await self.run(send, len(rooms) * self.sizes.messages_per_room, at_once=20)
            self._synced = (reader, rooms)
        return self._synced

    async def account(self, rooms: int) -> tuple[User, Sequence[str]]:
        """Return a user with this many rooms, or with fewer if the sizes are small."""
        if rooms not in self._accounts:
            (connection,) = await self.connections(1)
            user = await self.client.register(connection, f"in{rooms}")
            connection.close()
            made: list[str] = []

            async def create(at: int, link: Connection) -> None:
                made.append(await self.client.create_room(link, user, name=f"Room {at}"))

            await self.run(create, self.size_of(rooms), at_once=8)
            self._accounts[rooms] = (user, made)
        return self._accounts[rooms]

    def part_of(self, members: int) -> int:
        """Return how many members a large room has with these sizes."""
        return max(members // self.sizes.account_part, 10)

    def size_of(self, rooms: int) -> int:
        """Return how many rooms an account has with these sizes."""
        return max(rooms // self.sizes.account_part, 20)

    async def space(self) -> str:
        """Return a space with many rooms, a tenth of them in spaces below it."""
        if self._space is None:
            (owner,) = await self.people(1)
            (connection,) = await self.connections(1)
            spaces = [
                await self.client.create_room(
                    connection, owner, name=f"Space {number}", type="m.space"
                )
                for number in range(11)
            ]
            for below in spaces[1:]:
                await self.client.add_child(connection, owner, spaces[0], below)
            for number in range(self.sizes.tree - len(spaces)):
                room = await self.client.create_room(connection, owner, name=f"Place {number}")
                parent = spaces[number // 10 % 10 + 1] if number % 10 == 0 else spaces[0]
                await self.client.add_child(connection, owner, parent, room)
            connection.close()
            self._space = spaces[0]
        return self._space

    async def history(self) -> str:
        """Return a room of ten users with many messages."""
        if self._history is None:
            people = await self.people(10)
            (connection,) = await self.connections(1)
            room = await self.client.create_room(connection, people[0], name="History")
            for user in people[1:]:
                await self.client.join(connection, user, room)
            connection.close()
            await self.run(
                lambda at, link: self.client.send(link, people[at % 10], room),
                self.sizes.history,
                at_once=10,
            )
            self._history = room
        return self._history

    async def searchable_words(self) -> Sequence[str]:
        """Return the words in many messages of the busy rooms, the most common first. All messages
        are indexed for search."""
        if self._words is None:
            people, rooms, random = (
                await self.people(self.sizes.senders),
                await self.busy_rooms(),
                Random(1),
            )
            syllables = [
                first + second
                for first in "bdgklmnqrstxyz"
                for second in ("a", "e", "i", "o", "u", "oʻ")
            ]
            words = [
                "".join(random.choices(syllables, k=random.randint(1, 5))) for _ in range(20_000)
            ]
            often = list(accumulate(1 / rank for rank in range(1, len(words) + 1)))
            texts = [
                " ".join(random.choices(words, cum_weights=often, k=random.randint(3, 20)))
                for _ in range(self.sizes.searched)
            ] + ["oxirgi"]
            if len(texts) > FILLED_DIRECTLY:
                self._server.stop()
                await fill(
                    self._server.storage, rooms, [user.user_id for user in people], texts[:-1]
                )
                await self._server.start(cheap_passwords=True)
                texts = texts[-1:]
            await self.run(
                lambda at, link: self.client.send(
                    link, people[at % len(people)], rooms[at % len(rooms)], texts[at]
                ),
                len(texts),
                at_once=min(self.sizes.senders, len(texts)),
            )
            (connection,) = await self.connections(1)
            while not await self.client.search(connection, people[0], "oxirgi"):
                await deferLater(self._reactor, 0.2)
            connection.close()
            self._words = words
        return self._words

    async def crowd(self, members: int) -> str:
        """Return a room that the first users are in."""
        if members not in self._crowds:
            people = await self.people(members)
            (connection,) = await self.connections(1)
            room = await self.client.create_room(connection, people[0], name=f"{members} members")
            connection.close()
            await self.run(
                lambda at, link: self.client.join(link, people[at + 1], room),
                members - 1,
                at_once=4,
            )
            self._crowds[members] = room
        return self._crowds[members]
