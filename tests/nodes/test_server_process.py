"""The server as an operator sees it: its sockets, signals, log, and errors at start."""

import http.client
import json
import resource
import socket
import stat
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from storage.engine.database import PostgresConfig, SQLiteConfig
from tests.helpers.databases import PostgresTemplates
from tests.helpers.logins import password_auth
from tests.helpers.programs import run_program
from tests.helpers.server_process import SECONDS_TO_START, ServerFiles, UnixConnection, exchange

VERSIONS = "/_matrix/client/versions"
WHOAMI = "/_matrix/client/v3/account/whoami"
SYNC = "/_matrix/client/v3/sync"
CLIENT_ONLY = [{"names": ["client"]}]
Make = Callable[..., ServerFiles]


@pytest.fixture
def make(tmp_path: Path, sqlite: SQLiteConfig) -> Iterator[Make]:
    """Make the files of a server with additional options. Its processes are killed after the
    test."""
    made: list[ServerFiles] = []

    def make_files(**further: object) -> ServerFiles:
        files = ServerFiles(tmp_path / f"server{len(made)}", sqlite, further)
        made.append(files)
        return files

    yield make_files
    for files in made:
        files.end()


def write_certificate(folder: Path) -> tuple[Path, Path]:
    """Write a self-signed certificate for localhost, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "tls.crt", folder / "tls.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return paths


def wait_for(look: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.01)


def test_tcp_tls_and_metrics_listen_on_separate_ports(make: Make, tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path)
    local = {"port": 0, "bind_addresses": ["127.0.0.1"]}
    server = make(
        tls_certificate_path=str(certificate),
        tls_private_key_path=str(key),
        enable_metrics=True,
        listeners=[
            {**local, "resources": CLIENT_ONLY},
            {**local, "tls": True, "resources": CLIENT_ONLY},
            {**local, "type": "metrics"},
        ],
    ).start(listeners=3)
    assert server.request("GET", VERSIONS).status == 200
    assert server.request("GET", "/metrics").status == 404
    secure = server.connect_tls(certificate, 1)
    assert exchange(secure, "GET", VERSIONS).status == 200
    secure.close()
    figures = http.client.HTTPConnection("127.0.0.1", server.ports[2], timeout=60)
    text = exchange(figures, "GET", "/metrics").body.decode()
    assert (
        'mahalla_http_requests_total{code="200",endpoint="get_versions",method="GET"} 2.0' in text
    )
    assert "mahalla_database_transactions_total{" in text
    assert "mahalla_job_steps_total{" in text
    assert exchange(figures, "GET", VERSIONS).status == 404
    figures.close()
    assert server.stop() == 0


def test_a_stale_unix_socket_of_a_killed_process_is_replaced(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    local = {"port": 0, "bind_addresses": ["127.0.0.1"], "resources": CLIENT_ONLY}
    files = make(listeners=[{"path": str(path), "mode": 0o660, "resources": CLIENT_ONLY}, local])
    for _ in range(2):
        server = files.start()
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        connection = UnixConnection(path)
        assert exchange(connection, "GET", VERSIONS).status == 200
        connection.close()
        server.kill()
    server = files.start()
    assert server.stop() == 0
    assert not path.exists()


def test_the_client_address_is_taken_from_the_proxy(make: Make) -> None:
    listener = {
        "port": 0,
        "bind_addresses": ["127.0.0.1"],
        "x_forwarded": True,
        "resources": CLIENT_ONLY,
    }
    server = make(listeners=[listener], log={"format": "json"}).start()
    connection = server.connect()
    assert (
        exchange(connection, "GET", VERSIONS, headers={"X-Forwarded-For": "203.0.113.7"}).status
        == 200
    )
    connection.close()
    assert server.stop() == 0
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert "203.0.113.7" in [line.get("client_ip") for line in lines]


def test_long_polls_do_not_delay_shutdown(make: Make, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    server = make(pid_file=str(pid_file)).start()
    assert int(pid_file.read_text()) == server.process.pid
    token = server.register("alice")
    since = server.request("GET", SYNC, token=token).json["next_batch"]
    polls = [server.connect() for _ in range(20)]
    for poll in polls:
        poll.request(
            "GET",
            f"{SYNC}?timeout=60000&since={since}",
            headers={"Authorization": f"Bearer {token}"},
        )
    idle = server.connect()
    idle.connect()
    assert server.request("GET", WHOAMI, token=token).status == 200
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < 5, "shutdown waited for the long polls"
    assert not pid_file.exists()
    assert "Traceback" not in server.log.read_text()
    for poll in [*polls, idle]:
        poll.close()


def failing(files: ServerFiles) -> tuple[int, str]:
    """Return exit code and output of a server that cannot start."""
    process, log = files.launch("run")
    return process.wait(SECONDS_TO_START), log.read_text()


def test_a_port_in_use_is_reported(make: Make) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, text = failing(
            make(
                listeners=[
                    {"port": port, "bind_addresses": ["127.0.0.1"], "resources": CLIENT_ONLY}
                ]
            )
        )
    assert code == 1
    assert f"127.0.0.1:{port}" in text
    assert "in use; another program already listens there" in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("further", "said"),
    [
        ({"signing_key_path": "nowhere.key"}, "nowhere.key"),
        ({"server_nam": "localhost"}, "server_name"),
        (
            {"database": {"name": "sqlite3", "args": {"database": "/nowhere/at/all.db"}}},
            "/nowhere/at/all.db",
        ),
        (
            {"database": {"name": "psycopg2", "args": {"host": "/nowhere", "dbname": "x"}}},
            "/nowhere",
        ),
        (
            {
                "tls_certificate_path": "nowhere.crt",
                "tls_private_key_path": "nowhere.key",
                "listeners": [
                    {
                        "port": 0,
                        "tls": True,
                        "bind_addresses": ["127.0.0.1"],
                        "resources": CLIENT_ONLY,
                    }
                ],
            },
            "nowhere",
        ),
    ],
    ids=["signing key", "unknown option", "sqlite", "postgresql", "certificate"],
)
def test_a_configuration_error_is_one_line(
    make: Make, further: dict[str, object], said: str
) -> None:
    code, text = failing(make(**further))
    assert code == 1
    assert said in text
    assert "Traceback" not in text


def test_an_account_is_created_while_the_server_runs(
    tmp_path: Path, database_config: SQLiteConfig | PostgresConfig
) -> None:
    files = ServerFiles(tmp_path / "server", database_config)
    try:
        server = files.start()
        arguments = [
            "create-user",
            "root",
            "--admin",
            "--password-file",
            "-",
            "-c",
            str(files.config),
        ]
        made = run_program(
            "homeserver", *arguments, given="correct horse\n", timeout=SECONDS_TO_START
        )
        assert made.returncode == 0, made.stderr
        assert "@root:localhost" in made.stdout
        login = password_auth("root", "correct horse")
        reply = server.request("POST", "/_matrix/client/v3/login", login)
        assert reply.status == 200, reply.body
        assert server.stop() == 0
    finally:
        files.end()


def test_a_full_disk_is_reported_and_survived(make: Make) -> None:
    server = make().start()
    token = server.register("alice")
    room = server.request("POST", "/_matrix/client/v3/createRoom", {}, token=token).json["room_id"]
    path = f"/_matrix/client/v3/rooms/{room}/send/m.room.message/"
    unlimited = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
    # No file may grow beyond the present size of the write-ahead log, as on a full disk.
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (60_000, unlimited[1]))
    for number in range(3):
        reply = server.request("PUT", f"{path}{number}", {"body": "x" * 20000}, token=token)
        assert (reply.status, reply.json["errcode"]) == (503, "M_UNKNOWN")
    assert server.request("GET", WHOAMI, token=token).status == 200
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, unlimited)
    for number in range(3):
        assert (
            server.request("PUT", f"{path}{number}", {"body": "x" * 20000}, token=token).status
            == 200
        )
    assert "Traceback" not in server.log.read_text()
    assert server.stop() == 0


def test_the_server_reconnects_to_postgresql(
    tmp_path: Path, postgresql: PostgresConfig, postgres_templates: PostgresTemplates
) -> None:
    files = ServerFiles(tmp_path / "server", postgresql)
    try:
        server = files.start()
        token = server.register("alice")
        room = server.request("POST", "/_matrix/client/v3/createRoom", {}, token=token).json[
            "room_id"
        ]
        for number in range(3):
            postgres_templates.drop_connections(postgresql)
            statuses: list[int] = []

            def send(number: int = number, statuses: list[int] = statuses) -> bool:
                path = f"/_matrix/client/v3/rooms/{room}/send/m.room.message/{number}"
                statuses.append(server.request("PUT", path, {"body": "tea"}, token=token).status)
                return statuses[-1] == 200

            wait_for(send)
            assert set(statuses) <= {200, 503}
        messages = server.request(
            "GET", f"/_matrix/client/v3/rooms/{room}/messages?dir=f&limit=100", token=token
        ).json
        assert len([event for event in messages["chunk"] if event["type"] == "m.room.message"]) == 3
        assert server.stop() == 0
    finally:
        files.end()
