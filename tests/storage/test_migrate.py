"""From an empty database to the newest schema, a step at a time; what must not happen on the
way."""

import re
import sqlite3
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from twisted.logger import capturedLogs, formatEvent

from storage.engine.database import PostgresConfig, SQLiteConfig, make_engine
from storage.engine.interface import Connection, DatabaseUnavailable, Engine, UnsuitableDatabase
from storage.engine.migrate import MigrationFailed, SchemaTooNew, find_migrations, migrate
from tests.helpers.databases import PostgresTemplates, database_before

Values = dict[str, str | int | bytes | None]

COUNTERS = "CREATE TABLE counters (name TEXT NOT NULL PRIMARY KEY, value BIGINT NOT NULL);\n"


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    """A folder of schema files with two steps, the second of which differs between the
    databases."""
    folder = tmp_path / "schema"
    folder.mkdir()
    (folder / "0001_initial.sql").write_text(
        COUNTERS
        + "CREATE TABLE things (raw BYTES); -- BYTES; 100%\nINSERT INTO things VALUES ('a;b');"
    )
    for name in ("sqlite", "postgres"):
        (folder / f"0002_more.{name}.sql").write_text(
            f"INSERT INTO counters VALUES ('{name}', 7);\n"
        )
    return folder


def ask(engine: Engine, sql: str) -> list[tuple[object, ...]]:
    connection = engine.connect_reader()
    try:
        return connection.query(sql, ())
    finally:
        connection.close()


def test_the_steps_are_run_once_and_in_order(engine: Engine, schema: Path) -> None:
    for _ in range(2):
        assert migrate(engine, schema) == 0
    assert ask(engine, "SELECT name, value FROM counters") == [(engine.name, 7)]
    assert ask(engine, "SELECT version, name FROM schema_version ORDER BY version") == [
        (1, "initial"),
        (2, "more"),
    ]


def test_a_new_database_is_told_in_a_line_and_an_old_one_step_by_step(
    empty_sqlite: SQLiteConfig, schema: Path
) -> None:
    engine = make_engine(empty_sqlite)
    with capturedLogs() as told:
        migrate(engine, schema)
    assert [formatEvent(event) for event in told] == [
        "The database is new, and has schema version 2."
    ]
    (schema / "0003_third.sql").write_text("CREATE TABLE third (id BIGINT);")
    with capturedLogs() as told:
        migrate(engine, schema)
    assert [formatEvent(event) for event in told][1:] == [
        "The database now has schema version 3 (third)."
    ]


def test_a_step_that_fails_leaves_nothing_of_itself(engine: Engine, schema: Path) -> None:
    (schema / "0003_broken.sql").write_text(
        "CREATE TABLE half (id BIGINT);\nINSERT INTO nowhere VALUES (1);"
    )
    with pytest.raises(MigrationFailed, match="0003_broken"):
        migrate(engine, schema)
    assert ask(engine, "SELECT MAX(version) FROM schema_version") == [(2,)]
    (schema / "0003_broken.sql").write_text("CREATE TABLE half (id BIGINT);")
    migrate(engine, schema)
    assert ask(engine, "SELECT id FROM half") == []


def test_a_newer_database_is_refused_with_both_versions(engine: Engine, schema: Path) -> None:
    migrate(engine, schema)
    for path in schema.glob("0002*"):
        path.unlink()
    with pytest.raises(SchemaTooNew, match=r"version 2.*up to 1.*newer one"):
        migrate(engine, schema)


def test_two_nodes_may_start_at_once(engine: Engine, schema: Path) -> None:
    failures: list[BaseException] = []

    def start() -> None:
        try:
            migrate(engine, schema)
        except BaseException as error:
            failures.append(error)

    nodes = [threading.Thread(target=start) for _ in range(4)]
    for node in nodes:
        node.start()
    for node in nodes:
        node.join(60)
    assert failures == []
    assert ask(engine, "SELECT COUNT(*) FROM schema_version") == [(2,)]


def test_a_file_with_data_is_copied_first(empty_sqlite: SQLiteConfig, schema: Path) -> None:
    second = [(path, path.read_text()) for path in schema.glob("0002*")]
    for path, _ in second:
        path.unlink()
    engine = make_engine(empty_sqlite)
    migrate(engine, schema)
    copies = Path(empty_sqlite.path).parent
    assert list(copies.glob("*.before-*")) == []
    for path, text in second:
        path.write_text(text)
    migrate(engine, schema)
    (copy,) = copies.glob("*.before-*")
    assert copy.stat().st_mode & 0o777 == 0o600, "all that people said is in it"
    before = sqlite3.connect(copy)
    assert before.execute("SELECT MAX(version) FROM schema_version").fetchall() == [(1,)]
    assert before.execute("SELECT COUNT(*) FROM things").fetchall() == [(1,)]
    before.close()


def test_a_database_of_an_unsuitable_kind_is_refused(
    postgres_templates: PostgresTemplates, schema: Path
) -> None:
    config = postgres_templates.create(empty=True, encoding="SQL_ASCII")
    with pytest.raises(UnsuitableDatabase, match=r"has encoding SQL_ASCII.*CREATE DATABASE"):
        migrate(make_engine(config), schema)
    postgres_templates.drop(config)


def test_old_messages_from_the_future_are_as_old_as_the_upgrade(
    engine: Engine, tmp_path: Path
) -> None:
    event = (
        "INSERT INTO events (event_nid, room_nid, depth, origin_server_ts, flags, event_id, type, state_key, sender, pdu)"
        " VALUES (?, 1, 1, ?, 16, ?, '', ?, '', ?)"
    )
    future = 2**50
    before = int(time.time()) * 1000
    with database_before(engine, tmp_path, 74) as writer:
        for nid, (ts, state_key) in enumerate([(5, None), (future, None), (future, "")], 1):
            writer.execute(event, (nid, ts, f"${nid}", state_key, b"{}"))
    (first,), (second,), (state,) = ask(
        engine, "SELECT origin_server_ts FROM events ORDER BY event_nid"
    )
    assert (first, state) == (5, future)
    assert isinstance(second, int)
    assert before <= second <= time.time() * 1000


def put_memberships(
    writer: Connection, stories: Mapping[str, Sequence[str]]
) -> dict[str, list[int]]:
    """Events by which each user had one membership after the other; their numbers, whose positions
    are greater by 100."""
    nids: dict[str, list[int]] = {}
    for user, story in stories.items():
        of_user = nids.setdefault(user, [])
        for membership in story:
            nid = 1 + sum(map(len, nids.values()))
            pdu = b'{"content":{"membership":"%s"}}' % membership.encode()
            before = of_user[-1] if of_user else None
            writer.execute(
                "INSERT INTO events (event_nid, room_nid, position, depth, origin_server_ts, replaces, flags, event_id, type,"
                " state_key, sender, pdu) VALUES (?, 1, ?, 1, 1, ?, 16, ?, 'm.room.member', ?, '', ?)",
                (nid, 100 + nid, before, f"${nid}", user, pdu),
            )
            of_user.append(nid)
    return nids


def test_where_stays_ended_is_found_in_the_events(engine: Engine, tmp_path: Path) -> None:
    row = (
        "INSERT INTO memberships (room_nid, user_id, membership, event_nid, sender, position, is_local)"
        " VALUES (1, ?, ?, ?, '', ?, 1)"
    )
    stories = {
        "in": ["invite", "join"],
        "left": ["join", "leave", "ban", "leave"],
        "back": ["join", "leave", "join", "ban"],
        "never": ["invite", "leave"],
        "reset": ["join"],
    }
    with database_before(engine, tmp_path, 82) as writer:
        nids = put_memberships(writer, stories)
        for user, story in stories.items():
            latest = nids[user][-1]
            writer.execute(
                row, (user, "leave" if user == "reset" else story[-1], latest, 100 + latest)
            )
    found = {
        user: ended for user, ended in ask(engine, "SELECT user_id, left_position FROM memberships")
    }
    assert found == {
        "in": None,
        "left": 100 + nids["left"][1],
        "back": 100 + nids["back"][3],
        "never": None,
        "reset": 100 + nids["reset"][0],
    }


def test_where_stays_began_is_found_however_far_back(engine: Engine, tmp_path: Path) -> None:
    row = (
        "INSERT INTO memberships (room_nid, user_id, membership, event_nid, sender, position, is_local, left_position)"
        " VALUES (1, ?, ?, ?, '', ?, ?, ?)"
    )
    often = 60
    stories = {
        "stays": ["invite", "join", *["join"] * often],
        "back": ["join", "leave", "join", "join"],
        "elsewhere": ["join", "join"],
        "left": ["join", "leave"],
        "asked often": ["join", "leave", *["invite", "leave"] * often],
        "never": ["invite", "leave"] * often,
    }
    with database_before(engine, tmp_path, 109) as writer:
        nids = put_memberships(writer, stories)
        for user, story in stories.items():
            latest = nids[user][-1]
            ended = 100 + latest if user == "left" else None
            writer.execute(
                row, (user, story[-1], latest, 100 + latest, int(user != "elsewhere"), ended)
            )
    found = {
        user: (began, ended)
        for user, began, ended in ask(
            engine, "SELECT user_id, joined_position, left_position FROM memberships"
        )
    }
    assert found == {
        "stays": (100 + nids["stays"][1], None),
        "back": (100 + nids["back"][2], None),
        "elsewhere": (None, None),
        "left": (None, 100 + nids["left"][1]),
        "asked often": (None, 100 + nids["asked often"][1]),
        "never": (None, None),
    }


def test_who_said_something_in_which_thread_is_found(engine: Engine, tmp_path: Path) -> None:
    row = (
        "INSERT INTO relations (target, rel_type, depth, event_nid, event_id, room_nid, type, sender, origin_server_ts, is_whole)"
        " VALUES (?, ?, ?, ?, ?, ?, 'm.room.message', ?, ?, 1)"
    )
    children = [  # root, type, depth, number, room, sender
        ("$a", "m.thread", 5, 1, 1, "@u:t"),
        ("$a", "m.thread", 3, 2, 1, "@u:t"),  # came later, and stands before the other
        ("$a", "m.thread", 5, 3, 1, "@v:t"),
        ("$a", "m.thread", 5, 4, 1, "@v:t"),  # beside the other: the later one is the latest
        ("$a", "m.thread", 9, 5, 2, "@u:t"),  # of another room, which names the same root
        ("$b", "m.thread", 9, 6, 1, "@u:t"),
        ("$b", "m.reference", 10, 7, 1, "@u:t"),
        ("$c", "m.annotation", 10, 8, 1, "@u:t"),
    ]
    with database_before(engine, tmp_path, 114) as writer:
        for target, kind, depth, nid, room, sender in children:
            writer.execute(row, (target, kind, depth, nid, f"${nid}", room, sender, nid))
    found = ask(
        engine, "SELECT target, room_nid, sender, count, depth, event_nid FROM thread_senders"
    )
    assert len(found) == 4
    assert set(found) == {
        ("$a", 1, "@u:t", 2, 5, 1),
        ("$a", 1, "@v:t", 2, 5, 4),
        ("$a", 2, "@u:t", 1, 9, 5),
        ("$b", 1, "@u:t", 1, 9, 6),
    }


def test_what_was_not_done_of_redactions_is_due(engine: Engine, tmp_path: Path) -> None:
    with database_before(engine, tmp_path, 117) as writer:
        for finished in (0, 1):
            writer.execute(
                "INSERT INTO related_redactions VALUES (?, '@', '*', 1, NULL, ?)",
                (f"${finished}", finished),
            )
    assert set(ask(engine, "SELECT target, due_ts FROM related_redactions")) == {
        ("$0", 0),
        ("$1", None),
    }


def test_devices_of_before_are_found_by_the_hour_in_which_they_were_seen(
    engine: Engine, tmp_path: Path
) -> None:
    hour = 3_600_000
    with database_before(engine, tmp_path, 118) as writer:
        for number, (ts, ip, agent) in enumerate(
            [
                (5 * hour, "::1", None),
                (6 * hour - 1, None, "agent"),
                (5 * hour, None, None),
                (None, None, None),
            ]
        ):
            writer.execute(
                "INSERT INTO devices (user_id, device_id, created_ts, made_ts, device_nid, last_seen_ts, last_seen_ip,"
                " last_seen_user_agent) VALUES ('@u:t', ?, 1, 1, ?, ?, ?, ?)",
                (f"D{number}", number, ts, ip, agent),
            )
    found = ask(engine, "SELECT device_id, seen_hour FROM devices ORDER BY device_id")
    assert found == [("D0", 5), ("D1", 5), ("D2", None), ("D3", None)]


ODD_MEMBERS = [
    rb'"reason":"a\u0000b"',
    rb'"reason":"a\\u0000b\\"',
    rb'"reason":"\\\",\"membership\":\"join\",\"x\":\"\u0000"',
    rb'"\u0000":1,"a\u0000":{"\u0000":"\u0000"}',
    rb'"lone":"\ud800","other":"\udc00\ud800"',
    rb'"number":1e999,"other":-0.0,"large":123456789012345678901234567890',
    rb'"a":1,"a":2',
    rb'"deep":' + b"[" * 250 + b"]" * 250,
    '"raw":"\U0010ffff\u2028\x7f"'.encode(),
    rb'"large":"' + rb"\u0000" * 10_000 + rb'"',
]
"""What may stand beside the membership in an event, and more than that."""


def test_odd_contents_survive_the_steps(engine: Engine, tmp_path: Path) -> None:
    newest = len(find_migrations(engine.name, engine.bytes_type))
    odd = [(f"@odd{number}\u0000:example.org", member) for number, member in enumerate(ODD_MEMBERS)]
    with database_before(engine, tmp_path, 79, newest) as writer:

        def add(table: str, **values: str | int | bytes | None) -> None:
            names, places = ", ".join(values), ", ".join("?" * len(values))
            writer.execute(
                f"INSERT INTO {table} ({names}) VALUES ({places})", tuple(values.values())
            )

        for number, (user, member) in enumerate(odd):
            first = 10 * number + 1
            for nid, membership in enumerate((b"join", b"leave", b"ban"), first):
                pdu = b'{"content":{%s,"membership":"%s"},"unsigned":{%s}}' % (
                    member,
                    membership,
                    member,
                )
                event: Values = {
                    "event_id": f"${nid}",
                    "type": "m.room.member",
                    "state_key": user,
                    "sender": user,
                    "pdu": pdu,
                }
                before = nid - 1 if nid > first else None
                add(
                    "events",
                    event_nid=nid,
                    room_nid=1,
                    position=nid,
                    depth=1,
                    origin_server_ts=1,
                    replaces=before,
                    flags=16,
                    **event,
                )
            message: Values = {
                "event_id": f"${first + 3}",
                "type": "m.room.message",
                "sender": user,
                "pdu": b'{"content":{%s}}' % member,
            }
            place: Values = {
                "room_nid": 1,
                "position": first + 3,
                "depth": 1,
                "origin_server_ts": 1,
                "flags": 16,
            }
            add("events", event_nid=first + 3, thread_root="$root\u0000", **place, **message)
            relation: Values = {
                "target": "$root\u0000",
                "rel_type": "m.thread",
                "event_id": f"${first + 3}",
                "room_nid": 1,
                "depth": 1,
            }
            kind: Values = {
                "type": "m.room.message",
                "sender": user,
                "origin_server_ts": 1,
                "is_whole": 1,
            }
            add("relations", event_nid=first + 3, **relation, **kind)
            latest: Values = {
                "membership": "ban",
                "event_nid": first + 2,
                "sender": user,
                "position": first + 2,
                "is_local": 1,
            }
            add("memberships", room_nid=1, user_id=user, **latest)
            content = b"{%s}" % member
            add("accounts", user_id=user, created_ts=1, erased=1, position=1)
            add(
                "account_data",
                user_id=user,
                room_id="\u0000",
                type="\u0000",
                content=content,
                position=1,
            )
            add("devices", user_id=user, device_id="\u0000", created_ts=1)
            add("to_device_messages", user_id=user, device_id="\u0000", position=1, content=content)
            add("to_device_floors", user_id=user, device_id="\u0000", position=1)
            add("filters", user_id=user, filter_id=1, definition=content.decode(), digest=b"")
            add(
                "oauth_clients",
                client_id=user,
                metadata=content.decode(),
                created_ts=1,
                last_used_ts=1,
            )
            receipt: Values = {
                "receipt_type": "m.read",
                "thread_id": "\u0000",
                "event_id": f"${first}",
                "ts": 1,
                "position": 1,
            }
            add("receipts", room_nid=1, user_id=user, **receipt)
            signature: Values = {
                "target_user_id": user,
                "target_key": "\u0000",
                "signer_user_id": user,
                "signature": "\u0000",
            }
            add("key_signatures", signer_key_id="ed25519:\u0000", **signature)
    assert ask(engine, "SELECT left_position FROM memberships ORDER BY event_nid") == [
        (10 * number + 2,) for number in range(len(odd))
    ]
    lengths = ask(engine, "SELECT length(content) FROM to_device_messages ORDER BY 1")
    assert lengths == sorted((len(member) + 2,) for member in ODD_MEMBERS)
    for table in (
        "account_data",
        "to_device_floors",
        "erasures",
        "filters",
        "oauth_clients",
        "receipts",
        "key_signatures",
    ):
        assert ask(engine, f"SELECT count(*) FROM {table}") == [(len(odd),)], table


def test_sqlite_in_memory_is_refused() -> None:
    with pytest.raises(UnsuitableDatabase, match="needs a file"):
        make_engine(SQLiteConfig(":memory:"))


def test_a_database_that_is_not_there_is_named(tmp_path: Path) -> None:
    for config, name in (
        (SQLiteConfig(str(tmp_path / "nowhere" / "homeserver.db")), "nowhere/homeserver.db"),
        (
            PostgresConfig(
                {"host": str(tmp_path), "dbname": "town", "user": "me", "password": "secret"}
            ),
            "dbname=town",
        ),
    ):
        with pytest.raises(DatabaseUnavailable, match=name) as raised:
            migrate(make_engine(config))
        assert "secret" not in str(raised.value)


def test_a_new_file_is_nobody_elses_business(empty_sqlite: SQLiteConfig) -> None:
    migrate(make_engine(empty_sqlite))
    assert Path(empty_sqlite.path).stat().st_mode & 0o077 == 0


def test_words_that_the_databases_say_differently_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "0001_a.sql").write_text(
        "CREATE TABLE a (n ROW_NUMBER, b BYTES) CLUSTERED; CREATE TABLE r (n BIGINT) ROOMY;"
    )
    sqlite, postgres = (
        find_migrations(engine, "X", tmp_path)[0].sql for engine in ("sqlite", "postgres")
    )
    assert sqlite == "CREATE TABLE a (n INTEGER, b X) WITHOUT ROWID; CREATE TABLE r (n BIGINT);"
    assert (
        postgres
        == "CREATE TABLE a (n BIGINT, b X); CREATE TABLE r (n BIGINT) WITH (fillfactor = 70);"
    )


def find_both(folder: Path) -> list[object]:
    return [find_migrations(engine, "X", folder) for engine in ("sqlite", "postgres")]


@pytest.mark.parametrize(
    "names",
    [
        ["0002_a.sql"],
        ["0001_a.sql", "0003_c.sql"],
        ["0001_a.sql", "0001_b.sql"],
        ["1_a.sql"],
        ["0001_a.sqlite.sql"],
    ],
)
def test_files_that_are_numbered_wrongly_are_refused(tmp_path: Path, names: list[str]) -> None:
    for name in names:
        (tmp_path / name).write_text("SELECT 1;")
    with pytest.raises(ValueError, match=r"schema files|is not named"):
        find_both(tmp_path)


def test_both_databases_get_the_same_tables_and_indices(
    empty_sqlite: SQLiteConfig, empty_postgres: PostgresConfig
) -> None:
    dumps = []
    for config in (empty_sqlite, empty_postgres):
        engine = make_engine(config)
        migrate(engine)
        dumps.append(
            dump_sqlite(engine) if isinstance(config, SQLiteConfig) else dump_postgres(engine)
        )
    assert len(dumps[0]) > 50
    assert dumps[0] == dumps[1]


TYPES = {"BYTEA": "BLOB", "DOUBLE PRECISION": "REAL"}


def dump_sqlite(engine: Engine) -> set[tuple[object, ...]]:
    found: set[tuple[object, ...]] = set()
    for (table,) in ask(
        engine, "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    ):
        if str(table).startswith("searchable_text"):
            continue  # the index of texts, to which each database has its own way
        for _, name, kind, not_null, _, _ in ask(engine, f"PRAGMA table_info({table})"):
            found.add((table, name, kind, bool(not_null)))
        indices = ask(engine, f"PRAGMA index_list({table})")
        for name in (
            () if any(origin == "pk" for *_, origin, _ in indices) else primary_key(engine, table)
        ):
            # the key of the rows themselves, which needs no index
            found.remove((table, name, "INTEGER", True))
            found |= {(table, name, "BIGINT", True), (table, "index", (name,), True, False)}
        for _, index, unique, _, partial in indices:
            columns = tuple(row[2] for row in ask(engine, f"PRAGMA index_info({index})"))
            found.add((table, "index", columns, bool(unique), bool(partial)))
    return found


def primary_key(engine: Engine, table: object) -> list[object]:
    return [name for _, name, *_, part in ask(engine, f"PRAGMA table_info({table})") if part]


def dump_postgres(engine: Engine) -> set[tuple[object, ...]]:
    found: set[tuple[object, ...]] = set()
    columns = (
        "SELECT table_name, column_name, data_type, is_nullable FROM information_schema.columns"
    )
    for table, name, kind, nullable in ask(engine, f"{columns} WHERE table_schema = 'public'"):
        found.add((table, name, TYPES.get(str(kind).upper(), str(kind).upper()), nullable == "NO"))
    indices = "SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = 'public' AND indexname <> 'searchable_text'"
    for table, definition in ask(engine, indices):
        match = re.search(r"\(([^)]*)\)(.*)", str(definition))
        assert match is not None
        names = tuple(part.strip().split(" ")[0].strip('"') for part in match[1].split(","))
        found.add((table, "index", names, "UNIQUE" in str(definition), " WHERE " in match[2]))
    return found
