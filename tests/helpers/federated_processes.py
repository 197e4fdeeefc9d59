"""Server processes that federate by TLS with a test certificate authority, and large rooms without
accounts for their members."""

import time
from os import urandom
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from federation.protocol.ids import RoomID, UserID
from federation.protocol.room_versions import ROOM_VERSIONS
from federation.rooms.event_drafts import Draft
from homeserver.app import build
from homeserver.commands.init_files import read_signing_keys
from homeserver.config.load import load_config
from homeserver.observe.access_log import SilentAccessLog
from homeserver.wiring.media import MediaThreads
from storage.engine.database import PostgresConfig, SQLiteConfig, make_engine
from storage.engine.executors import InlineExecutor
from storage.engine.migrate import migrate
from tests.helpers.certificates import Authority
from tests.helpers.databases import open_inline
from tests.helpers.executors import InlineThreads
from tests.helpers.server import (
    MemoryRelay,
    UnreachableWeb,
    UnreachableWire,
    fetch_nothing,
    follow_nowhere,
)
from tests.helpers.server_process import RunningServer, ServerFiles

CHUNK = 200


class FederatedProcesses:
    """Servers that trust the same certificate authority."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._authority = Authority(folder)
        self.files: list[ServerFiles] = []

    def start(self, port: int, further: dict[str, object] | None = None) -> RunningServer:
        """Start a server named `localhost:PORT`."""
        return self.add(port, further).start(listeners=2)

    def add(
        self,
        port: int,
        further: dict[str, object] | None = None,
        database: SQLiteConfig | PostgresConfig | None = None,
    ) -> ServerFiles:
        """Write the files of a server named `localhost:PORT`."""
        certificate, key = self._authority.issue("localhost")
        folder = self._folder / str(port)
        files = ServerFiles(
            folder,
            database or SQLiteConfig(str(folder / "homeserver.db")),
            {
                "server_name": f"localhost:{port}",
                "tls_certificate_path": str(certificate),
                "tls_private_key_path": str(key),
                "federation_custom_ca_list": [str(self._authority.path)],
                "ip_range_whitelist": ["127.0.0.1", "::1"],
                "listeners": [
                    {
                        "port": 0,
                        "bind_addresses": ["127.0.0.1"],
                        "resources": [{"names": ["client", "keys"]}],
                    },
                    {
                        "port": port,
                        "bind_addresses": ["127.0.0.1"],
                        "tls": True,
                        "resources": [{"names": ["federation"]}],
                    },
                ],
                **(further or {}),
            },
        )
        self.files.append(files)
        return files

    def end(self) -> None:
        for files in self.files:
            files.end()


def make_large_room(files: ServerFiles, port: int, members: int) -> str:
    """Create a public room with `members` members in the SQLite database of a stopped server.
    Return its ID."""
    made: list[str] = []
    Deferred.fromCoroutine(_make_large_room(files, port, members)).addCallbacks(
        made.append, lambda failure: failure.raiseException()
    )
    return made[0]


async def _make_large_room(files: ServerFiles, port: int, members: int) -> str:
    config = load_config([files.config], {}).config
    database_config = SQLiteConfig(str(files.folder / "homeserver.db"))
    migrate(make_engine(database_config))
    database = open_inline(database_config)
    clock = Clock()
    clock.advance(time.time())
    app = build(
        config,
        clock,
        database,
        key=read_signing_keys(files.folder / "localhost.signing.key")[0],
        directory_threads=InlineThreads(),
        threads=InlineThreads(),
        media_threads=MediaThreads(
            files=InlineExecutor(),
            images=InlineExecutor(),
            photos=InlineExecutor(),
            pages=InlineExecutor(),
            object_reads=InlineExecutor(),
            object_writes=InlineExecutor(),
            scans=InlineExecutor(),
        ),
        mail_thread=InlineExecutor(),
        make_relay=lambda _: MemoryRelay(),
        wire=UnreachableWire(),
        fetch=fetch_nothing,
        follow=follow_nowhere,
        preview_web=UnreachableWeb(),
        web=UnreachableWeb(),
        random=urandom,
        monotonic=clock.seconds,
        access_log=SilentAccessLog(),
    )
    creator = UserID(f"@creator:localhost:{port}")
    room_id = RoomID(f"!large:localhost:{port}")
    drafts = [
        Draft("m.room.create", creator, {"room_version": "11"}, ""),
        Draft("m.room.member", creator, {"membership": "join"}, creator),
        Draft("m.room.power_levels", creator, {"users": {creator: 100}}, ""),
        Draft("m.room.join_rules", creator, {"join_rule": "public"}, ""),
        Draft("m.room.history_visibility", creator, {"history_visibility": "shared"}, ""),
        Draft("m.room.name", creator, {"name": "large"}, ""),
    ]
    await app.room_engine.engine.create(
        ROOM_VERSIONS["11"], room_id, drafts, lambda _txn, _room: None
    )
    for start in range(0, members, CHUNK):
        users = [
            UserID(f"@user{number}:localhost:{port}")
            for number in range(start, min(start + CHUNK, members))
        ]
        joins = [
            Draft("m.room.member", user, {"membership": "join", "displayname": user[1:20]}, user)
            for user in users
        ]
        await app.room_engine.engine.send(room_id, joins)
    await database.close()
    return room_id
