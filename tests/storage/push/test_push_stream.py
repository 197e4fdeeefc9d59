"""The stream in batches for the push sender: each kind of row is bounded per batch, and together
they are complete."""

from storage.account_data.account_data import AccountDataStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.push.push_stream import FILTER_TYPES, PushStream, PushStreamBatch

LIMIT = 3
MANY = 10


async def read_batches(database: Database) -> list[PushStreamBatch]:
    stream, found, done = PushStream(database), list[PushStreamBatch](), 0
    while done < database.streams.current():
        found.append(await stream.get_batch(done, database.streams.current(), LIMIT))
        assert found[-1].upto > done
        done = found[-1].upto
    return found


async def test_changed_filters_come_a_few_at_a_time(database: Database) -> None:
    users = [f"@{number}:example.org" for number in range(MANY)]
    data = AccountDataStore(database)

    def write(txn: WriteTransaction) -> None:
        for number, user_id in enumerate(users):
            data.set_entry(txn, user_id, None, FILTER_TYPES[number % len(FILTER_TYPES)], b"{}")

    await database.write("put", write)
    found = await read_batches(database)
    assert max(len(each.changed_filters) for each in found) == LIMIT
    assert [user_id for each in found for user_id in each.changed_filters] == users


async def test_rooms_with_removals_come_a_few_at_a_time(database: Database) -> None:
    def write(txn: WriteTransaction) -> None:
        for room_nid in range(1, MANY + 1):
            txn.execute(
                "INSERT INTO events (event_nid, event_id, room_nid, position, depth,"
                " origin_server_ts, flags, type, sender,"
                " pdu) VALUES (?, ?, ?, ?, 1, 1, 0, 'm.room.redaction', '@a:example.org', ?)",
                (room_nid, f"${room_nid}", room_nid, txn.next_position(), b"{}"),
            )
            txn.execute(
                "INSERT INTO purge_counts (room_nid, day, cause, messages, position)"
                " VALUES (?, 1, 'purge', 1, ?)",
                (room_nid + MANY, txn.next_position()),
            )

    await database.write("put", write)
    found = await read_batches(database)
    assert max(len(each.rooms_with_removals) for each in found) <= 2 * LIMIT
    assert sorted(room_nid for each in found for room_nid in each.rooms_with_removals) == list(
        range(1, 2 * MANY + 1)
    )
