"""A session ended through one node has ended on all nodes as soon as the request is answered, even
if the others hang or are cut off."""

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import psycopg2
from psycopg2.extensions import make_dsn

from homeserver.cluster.peer_nodes import TRUST_SECONDS
from storage.engine.database import PostgresConfig
from tests.helpers.logins import password_auth
from tests.helpers.programs import run_program
from tests.helpers.server_process import SECONDS_TO_START, RunningServer

V3 = "/_matrix/client/v3"
SLIDING = "/_matrix/client/v4/sync"
ROUNDS = 25


def whoami(server: RunningServer, token: str) -> Any:
    """Return status and error code of the response."""
    reply = server.request("GET", f"{V3}/account/whoami", token=token)
    return reply.status, reply.json.get("errcode")


ENDED = (401, "M_UNKNOWN_TOKEN")


def sign_in(server: RunningServer, password: str = "wonderland", name: str = "alice") -> str:
    reply = server.request("POST", f"{V3}/login", password_auth(name, password))
    assert reply.status == 200, reply.body
    return str(reply.json["access_token"])


def test_a_session_has_ended_on_all_nodes_when_the_logout_is_answered(
    processes: tuple[RunningServer, RunningServer],
) -> None:
    processes[0].register("alice")
    took = []
    for number in range(ROUNDS):
        here, there = processes[number % 2], processes[1 - number % 2]
        token, other = sign_in(here), sign_in(there)
        for server in processes:
            assert [whoami(server, each)[0] for each in (token, other)] == [200, 200]
        began = time.monotonic()
        path = "logout" if number % 3 else "logout/all"
        assert here.request("POST", f"{V3}/{path}", {}, token=token).status == 200
        took.append(time.monotonic() - began)
        assert whoami(there, token) == ENDED
        assert whoami(here, token) == ENDED
        assert (whoami(there, other) == ENDED) == (path == "logout/all")
    assert median(took) < TRUST_SECONDS / 2, "the other nodes answer instead of timing out"


def test_a_device_deleted_by_an_administrator_is_signed_out_on_all_nodes(
    processes: tuple[RunningServer, RunningServer], tmp_path: Path
) -> None:
    config = str(tmp_path / "node" / "homeserver.yaml")
    arguments = ["create-user", "root", "--admin", "--password-file", "-", "-c", config]
    made = run_program("homeserver", *arguments, given="wonderland\n", timeout=SECONDS_TO_START)
    assert made.returncode == 0, made.stderr
    processes[0].register("alice")
    root = sign_in(processes[0], name="root")
    path = "/_synapse/admin/v2/users/@alice:localhost"
    for number in range(ROUNDS):
        here, there = processes[number % 2], processes[1 - number % 2]
        token, kept = sign_in(here), sign_in(there)
        for server in processes:
            assert [whoami(server, each)[0] for each in (token, kept)] == [200, 200]
        device = here.request("GET", f"{V3}/account/whoami", token=token).json["device_id"]
        if number % 2:
            removed = here.request("DELETE", f"{path}/devices/{device}", token=root)
        else:
            removed = here.request(
                "POST", f"{path}/delete_devices", {"devices": [device]}, token=root
            )
        assert removed.status == 200, removed.body
        assert [whoami(server, token) for server in (there, here)] == [ENDED, ENDED]
        assert [whoami(server, kept)[0] for server in processes] == [200, 200]


def stop_between_writes(server: RunningServer, postgresql: PostgresConfig) -> None:
    """Stop the process, but not during a write, whose end all writers would wait for
    (`tests/storage/engine/test_write_lock.py`)."""
    at_work = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <>"
        " pg_backend_pid()"
        " AND backend_type = 'client backend' AND state <> 'idle'"
    )
    while True:
        os.kill(server.process.pid, signal.SIGSTOP)
        time.sleep(0.1)  # its last statements finish
        with (
            psycopg2.connect(make_dsn(None, **postgresql.connect)) as admin,
            admin.cursor() as cursor,
        ):
            cursor.execute(at_work)
            is_amid = cursor.fetchone() != (0,)
        admin.close()
        if not is_amid:
            return
        os.kill(server.process.pid, signal.SIGCONT)


def test_a_long_poll_on_another_node_gets_nothing_more(
    processes: tuple[RunningServer, RunningServer],
) -> None:
    here, there = processes
    bob = here.register("bob")
    room = here.request("POST", f"{V3}/createRoom", {"preset": "public_chat"}, token=bob).json[
        "room_id"
    ]
    alice = here.register("alice")
    assert here.request("POST", f"{V3}/rooms/{room}/join", {}, token=alice).status == 200
    body = {"lists": {"all": {"range": [0, 9], "timeline_limit": 1}}}
    for number in range(5):
        token = sign_in(there)
        pos = there.request("POST", SLIDING, body, token=token).json["pos"]
        with ThreadPoolExecutor(1) as thread:
            wanted = {**body, "pos": pos, "timeout": 20_000}
            waiting = thread.submit(there.request, "POST", SLIDING, wanted, token=token)
            time.sleep(0.3)
            assert here.request("POST", f"{V3}/logout", {}, token=token).status == 200
            text = {"msgtype": "m.text", "body": "after the end"}
            sent = here.request(
                "PUT", f"{V3}/rooms/{room}/send/m.room.message/{number}", text, token=bob
            )
            assert sent.status == 200
            answer = waiting.result()
        assert (answer.status, answer.json.get("errcode")) == ENDED


def test_a_node_that_hung_refuses_the_revoked_token(
    processes: tuple[RunningServer, RunningServer], postgresql: PostgresConfig
) -> None:
    here, there = processes
    here.register("alice")
    token = sign_in(here)
    assert whoami(there, token)[0] == 200
    stop_between_writes(there, postgresql)
    try:
        began = time.monotonic()
        assert here.request("POST", f"{V3}/logout", {}, token=token).status == 200
        assert TRUST_SECONDS - 0.5 < time.monotonic() - began < TRUST_SECONDS + 5
    finally:
        os.kill(there.process.pid, signal.SIGCONT)
    assert whoami(there, token) == ENDED


def test_a_disconnected_node_refuses_the_revoked_token(
    processes: tuple[RunningServer, RunningServer], postgresql: PostgresConfig
) -> None:
    here, there = processes
    here.register("alice")
    for _ in range(5):
        token = sign_in(here)
        assert whoami(there, token)[0] == 200
        with (
            psycopg2.connect(make_dsn(None, **postgresql.connect)) as admin,
            admin.cursor() as cursor,
        ):
            cursor.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        admin.close()
        status = 0
        while status != 200:
            status = here.request("POST", f"{V3}/logout", {}, token=token).status
            assert status in (200, 401, 503)
            if status == 401:
                break  # an earlier request succeeded, though its response was lost
        answer = whoami(there, token)
        while answer[0] == 503:  # not reconnected yet
            answer = whoami(there, token)
        assert answer == ENDED
