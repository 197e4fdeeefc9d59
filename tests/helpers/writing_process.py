"""A process that writes as fast as possible and prints what was acknowledged, until it is killed.

    python -m tests.helpers.writing_process sqlite PATH
    python -m tests.helpers.writing_process postgres "host=… dbname=…"

Each line of its output is the name of a row whose write was acknowledged.
"""

import os
import sys
from typing import cast

from psycopg2.extensions import parse_dsn
from twisted.internet import reactor as installed_reactor
from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred

from storage.engine.database import (
    Database,
    PostgresConfig,
    SQLiteConfig,
    WriteTransaction,
    open_database,
)
from storage.engine.streams import Change, Topic

CALLERS = 20


def put(txn: WriteTransaction, name: str) -> None:
    position = txn.next_position()
    txn.execute("INSERT INTO jobs (name, progress) VALUES (?, ?)", (name, str(position)))
    txn.announce(Change(position, Topic.PROFILE))


async def write_for_ever(database: Database, caller: int) -> None:
    number = 0
    while True:
        number += 1
        name = f"{os.getpid()}-{caller}-{number}"
        await database.write("put", put, name)
        os.write(1, f"{name}\n".encode())


def main() -> None:
    kind, where = sys.argv[1:]
    config = SQLiteConfig(where) if kind == "sqlite" else PostgresConfig(parse_dsn(where))
    reactor = cast(ReactorBase, installed_reactor)
    database = open_database(config, reactor)
    for caller in range(CALLERS):
        reactor.callWhenRunning(
            lambda caller=caller: Deferred.fromCoroutine(write_for_ever(database, caller))
        )
    reactor.run()


if __name__ == "__main__":
    main()
