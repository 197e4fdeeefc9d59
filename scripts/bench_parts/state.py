"""Measures the state tree alone: bytes and time for changes, look-ups, differences and complete
states, by size of room.

    scripts/bench state            the stored tree, on SQLite with its transactions
    scripts/bench state --shapes   other sizes of tree nodes, in memory
                                   (docs/adr/0004-state-tree.md)
"""

import argparse
import random
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from time import process_time

from twisted.internet.defer import Deferred

from storage.engine.database import (
    Database,
    SQLiteConfig,
    Transaction,
    WriteTransaction,
    make_engine,
)
from storage.engine.executors import InlineExecutor
from storage.engine.migrate import migrate
from storage.engine.observer import NullObserver
from storage.engine.streams import Streams
from storage.state.radix_tree import RadixTree
from storage.state.state_tree import StateTreeStore

SIZES = (100, 1_000, 10_000, 100_000)
CHANGES = 500
LOOKUPS = 5_000
SHAPES = ((4, 3), (4, 4), (5, 3), (5, 4), (5, 5), (6, 3), (6, 4), (6, 5))


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="bench state", description=__doc__.splitlines()[0] if __doc__ else None
    )
    parser.add_argument("--shapes", action="store_true", help="compare node sizes, in memory")
    options = parser.parse_args(arguments)
    if options.shapes:
        for leaf_bits, child_bits in SHAPES:
            for size in SIZES:
                measure_shape(RadixTree(leaf_bits, child_bits), size)
        return
    for size in SIZES:
        with tempfile.TemporaryDirectory() as directory:
            Deferred.fromCoroutine(measure_store(Path(directory) / "bench.db", size)).addErrback(
                _fail
            )


def _fail(failure: object) -> None:
    sys.exit(str(failure))


def microseconds(run: Callable[[], object], times: int) -> float:
    """Return the CPU time of one of `times` operations that `run` does."""
    started = process_time()
    run()
    return (process_time() - started) / times * 1e6


def measure_shape(tree: RadixTree, size: int) -> None:
    """Print a line for a tree in memory."""
    nodes: dict[bytes, bytes] = {}
    chance = random.Random(size)

    def load(ids: Iterable[bytes]) -> Mapping[bytes, bytes]:
        return {node: nodes[node] for node in ids}

    root, new = tree.apply(load, None, {key: key + 1 for key in range(size)})
    nodes.update(new)
    total_bytes = sum(len(node) + len(content) for node, content in new.items())
    written = [0, 0]

    def change() -> None:
        nonlocal root
        for number in range(CHANGES):
            root, changed = tree.apply(load, root, {chance.randrange(size): size + number + 1})
            nodes.update(changed)
            written[0] += len(changed)
            written[1] += sum(len(node) + len(content) for node, content in changed.items())

    change_us = microseconds(change, CHANGES)
    assert root is not None
    keys = [chance.randrange(size) for _ in range(LOOKUPS)]
    last = root
    lookup_us = microseconds(lambda: [tree.find(nodes.get, last, key) for key in keys], LOOKUPS)
    sys.stdout.write(
        f"leaf {1 << tree.leaf_bits:2} inner {1 << tree.child_bits:2} keys {size:7,}: "
        f"{written[1] / CHANGES:6.0f} bytes and {written[0] / CHANGES:.1f} rows a change, "
        f"{change_us:5.1f} us a change, "
        f"{lookup_us:.2f} us a look-up, whole {total_bytes / 1000:.0f} kB\n"
    )


async def measure_store(path: Path, size: int) -> None:
    """Print a line for a room in a database. The growth of the file includes SQLite's overhead."""
    engine = make_engine(SQLiteConfig(str(path), synchronous="OFF"))
    migrate(engine)
    database = Database(
        engine=engine,
        streams=Streams(0),
        readers=InlineExecutor(),
        writer=InlineExecutor(),
        observer=NullObserver(),
    )
    states = StateTreeStore(database=database)
    chance = random.Random(size)
    members = [("m.room.member", f"@user{number}:example.org") for number in range(size)]
    roots: list[bytes | None] = [None]

    def build(txn: WriteTransaction) -> None:
        roots.append(
            states.apply(txn, 1, None, {pair: number + 1 for number, pair in enumerate(members)})
        )

    def change(txn: WriteTransaction) -> None:
        for number in range(CHANGES):
            roots.append(
                states.apply(txn, 1, roots[-1], {chance.choice(members): size + number + 1})
            )

    def count_bytes(txn: Transaction) -> int:
        return int(txn.query("SELECT SUM(LENGTH(node) + LENGTH(content)) FROM state_nodes")[0][0])

    started = process_time()
    await database.write("build", build)
    build_ms = (process_time() - started) * 1e3
    total_bytes = await database.read("count", count_bytes)
    file_before = await _file_size(database)
    started = process_time()
    await database.write("change", change)
    change_us = (process_time() - started) / CHANGES * 1e6
    node_bytes = (await database.read("count", count_bytes) - total_bytes) / CHANGES
    file_bytes = (await _file_size(database) - file_before) / CHANGES

    root = roots[-1]
    wanted = [chance.choice(members) for _ in range(LOOKUPS)]
    await states.get_entries(1, root, members)
    lookup_us = microseconds(
        lambda: [states.get_cached(1, root, (pair,)) for pair in wanted], LOOKUPS
    )
    started = process_time()
    await states.get_diff(1, roots[-11], root)
    diff_ms = (process_time() - started) * 1e3
    started = process_time()
    await states.get_all(1, root)
    all_ms = (process_time() - started) * 1e3
    cold = StateTreeStore(database=database)
    started = process_time()
    await cold.get_all(1, root)
    cold_ms = (process_time() - started) * 1e3
    sys.stdout.write(
        f"{size:7,} members: build {build_ms:.1f} ms, {total_bytes / 1000:.0f} kB; "
        f"a change {change_us:.0f} us, "
        f"{node_bytes:.0f} bytes of nodes, {file_bytes:.0f} of file; a look-up {lookup_us:.2f} us; "
        f"diff over 10 changes {diff_ms:.2f} ms; complete state {all_ms:.1f} ms cached, "
        f"{cold_ms:.1f} ms not\n"
    )
    await database.close()


async def _file_size(database: Database) -> int:
    def read(txn: Transaction) -> int:
        pages, page_size = txn.query("SELECT * FROM pragma_page_count(), pragma_page_size()")[0]
        return int(pages) * int(page_size)

    return await database.read("file_size", read)


if __name__ == "__main__":
    main(sys.argv[1:])
