"""The commands of the command line."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from federation.protocol.signing import parse_signing_keys
from homeserver.__main__ import main
from homeserver.commands.process import open_log
from homeserver.config.load import load_config
from homeserver.services.scanning.rescans import follow_rescan
from homeserver.wiring.scanning import make_rescan_store
from storage.accounts.registration_tokens import RegistrationTokenRow, RegistrationTokenStore
from storage.engine.database import SQLiteConfig
from storage.engine.server_lock import ServerLock
from tests.helpers.databases import open_inline
from tests.helpers.ports import free_port
from tests.helpers.programs import run_program

SECONDS = 120.0

UNNEEDED = ("PIL", "boto3", "botocore", "ldap3", "saml2")
"""Large libraries, of which a server with the default options needs none."""

AS_PROGRAM = 'import runpy; runpy.run_module("homeserver", run_name="__main__", alter_sys=True)'
AS_COMMAND = "from homeserver.console_script import main; main()"

VERSION = """
import gc, sys

collections = []
gc.collect()
gc.callbacks.append(lambda phase, _: collections.append(phase))
program, sys.argv = sys.argv[1], ["mahalla", "version"]
try:
    exec(program)
except SystemExit as end:
    assert end.code == 0
gc.callbacks.clear()
print(gc.isenabled(), gc.get_freeze_count() > 100_000, len(collections) < 10)
"""

RUN = f"""
import runpy, sys
from twisted.internet import reactor

def stop():
    print(*sorted(set({UNNEEDED}) & sys.modules.keys()), "started")
    reactor.stop()

reactor.callWhenRunning(reactor.callLater, 0.1, stop)
sys.argv = ["mahalla", "run", "--config", sys.argv[1]]
runpy.run_module("homeserver", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("program", [AS_PROGRAM, AS_COMMAND])
def test_garbage_is_collected_after_all_modules_are_imported(program: str) -> None:
    run = run_python(VERSION, program)
    assert run.splitlines()[1:] == ["True True True"]


def test_a_server_with_default_options_does_not_load_optional_libraries(tmp_path: Path) -> None:
    assert call("init", "example.org", "--folder", tmp_path).exit_code == 0
    path = tmp_path / "homeserver.yaml"
    port = f"port: {free_port()}"
    path.write_text(path.read_text().replace("port: 8008", port))
    assert port in path.read_text()
    assert run_python(RUN, path) == "started\n"


def run_python(program: str, argument: str | Path) -> str:
    return subprocess.run(
        [sys.executable, "-c", program, str(argument)],
        check=True,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    ).stdout


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.mark.parametrize("words", [(), ("config",)])
def test_help_shows_each_command_without_truncation(words: tuple[str, ...]) -> None:
    output = call(*words, "--help")
    assert output.exit_code == 0
    assert "Commands:" in output.output
    assert "..." not in output.output.partition("Commands:")[2]


def test_init_creates_a_valid_configuration(tmp_path: Path) -> None:
    result = call(
        "init",
        "example.org",
        "--folder",
        tmp_path / "data",
        "--public-baseurl",
        "https://matrix.example.org/",
    )
    assert result.exit_code == 0, result.output
    config = tmp_path / "data" / "homeserver.yaml"
    assert yaml.safe_load(config.read_text())["server_name"] == "example.org"
    key = tmp_path / "data" / "example.org.signing.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert len(parse_signing_keys(key.read_text())) == 1
    checked = call("config", "check", "--config", config)
    assert checked.exit_code == 0
    assert checked.output == "The configuration of example.org is valid.\n", (
        "all its options have an effect"
    )


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    assert call("init", "example.org", "--folder", tmp_path).exit_code == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    repeated = call("init", "other.example", "--folder", tmp_path)
    assert repeated.exit_code == 1
    assert "there is already a configuration" in repeated.output
    assert (
        "already exists and was not changed"
        in call("init", "example.org", "--folder", tmp_path).output
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_init_keeps_an_existing_signing_key(tmp_path: Path) -> None:
    call("init", "example.org", "--folder", tmp_path)
    key = (tmp_path / "example.org.signing.key").read_bytes()
    (tmp_path / "homeserver.yaml").unlink()
    assert call("init", "example.org", "--folder", tmp_path).exit_code == 0
    assert (tmp_path / "example.org.signing.key").read_bytes() == key


def test_init_creates_a_missing_signing_key(tmp_path: Path) -> None:
    config = tmp_path / "homeserver.yaml"
    config.write_text("server_name: example.org\nsigning_key_path: keys/own.key\n")
    (tmp_path / "keys").mkdir()
    refused = call("config", "check", "-c", config)
    assert refused.exit_code == 1
    assert "`mahalla init SERVER_NAME --folder FOLDER` creates it" in refused.output
    other = call("init", "other.example", "--folder", tmp_path)
    assert other.exit_code == 1
    assert "there is already a configuration" in other.output
    result = call("init", "example.org", "--folder", tmp_path)
    assert (result.exit_code, result.output) == (0, f"created {tmp_path / 'keys' / 'own.key'}\n")
    assert call("config", "check", "-c", config).exit_code == 0
    assert call("init", "example.org", "--folder", tmp_path).exit_code == 1, (
        "no file is missing any more"
    )
    assert config.read_text() == "server_name: example.org\nsigning_key_path: keys/own.key\n"


def test_init_refuses_an_invalid_base_url(tmp_path: Path) -> None:
    refused = call(
        "init",
        "example.org",
        "--folder",
        tmp_path / "data",
        "--public-baseurl",
        "matrix.example.org",
    )
    assert refused.exit_code == 1
    assert "start with https:// or http://" in refused.output
    assert not (tmp_path / "data").exists()


def test_init_refuses_an_invalid_server_name(tmp_path: Path) -> None:
    refused = call("init", "https://example.org/", "--folder", tmp_path / "data")
    assert refused.exit_code == 1
    assert "is not a server name" in refused.output
    assert not (tmp_path / "data").exists()


def test_check_reports_all_errors(tmp_path: Path) -> None:
    (tmp_path / "homeserver.yaml").write_text("server_nam: a.b\nbcrypt_rounds: many\n")
    checked = call("config", "check", "-c", tmp_path / "homeserver.yaml")
    assert checked.exit_code == 1
    assert "did you mean server_name?" in checked.output
    assert "homeserver.yaml:2: bcrypt_rounds" in checked.output


def test_check_prints_redirect_uris(tmp_path: Path) -> None:
    config = tmp_path / "data" / "homeserver.yaml"
    call(
        "init",
        "example.org",
        "--folder",
        tmp_path / "data",
        "--public-baseurl",
        "https://matrix.example.org/",
    )
    provider = (
        "- {{idp_id: {0}, idp_name: N, issuer: 'https://{0}.example', client_id: c, "
        "client_secret: s}}\n"
    )
    config.write_text(config.read_text() + "\noidc_providers:\n" + provider.format("town"))
    uri = "https://matrix.example.org/_synapse/client/oidc/callback"
    assert (
        f"redirect URI to register at oidc-town: {uri}\n"
        in call("config", "check", "-c", config).output
    )
    config.write_text(config.read_text() + provider.format("school"))
    output = call("config", "check", "-c", config).output
    for idp_id in ("town", "school"):
        assert f"redirect URI to register at oidc-{idp_id}: {uri}/oidc-{idp_id}\n" in output


def test_check_reports_missing_files(tmp_path: Path) -> None:
    config = tmp_path / "homeserver.yaml"
    config.write_text(
        "server_name: a.b\nfederation_custom_ca_list: [authority.pem]\nlisteners: [{port: 8448, "
        "tls: true}]\n"
        "tls_certificate_path: own.pem\ntls_private_key_path: own.key\n"
    )
    checked = call("config", "check", "-c", config)
    assert checked.exit_code == 1
    assert "signing_key_path: there is no signing key" in checked.output
    assert "authority.pem" in checked.output
    assert "own.pem" in checked.output
    assert "is valid" not in checked.output


@pytest.mark.parametrize(
    ("args", "output"),
    [
        ("{hots: localhost}", 'database.args: invalid dsn: invalid connection option "hots"'),
        ("{cp_max: many}", "cp_max"),
    ],
)
def test_check_reports_invalid_postgresql_parameters(
    tmp_path: Path, args: str, output: str
) -> None:
    config = tmp_path / "homeserver.yaml"
    call("init", "example.org", "--folder", tmp_path)
    text = config.read_text()
    config.write_text(
        text[: text.index("\ndatabase:")] + f"\ndatabase: {{name: psycopg2, args: {args}}}\n"
    )
    checked = call("config", "check", "-c", config)
    assert checked.exit_code == 1
    assert output in checked.output


def test_a_missing_configuration_is_reported(tmp_path: Path) -> None:
    checked = call("config", "check", "-c", tmp_path / "homeserver.yaml")
    assert checked.exit_code == 1
    assert "file not found; give its path with `--config`" in checked.output


def test_create_user_accepts_a_full_user_id(data: Path) -> None:
    config = str(data / "homeserver.yaml")
    result = run_command(
        "create-user",
        "-c",
        config,
        "@anna:example.org",
        "--password-file",
        "-",
        given="long enough\n",
    )
    assert result.stdout == "created @anna:example.org\n", result.stderr
    other = run_command(
        "create-user",
        "-c",
        config,
        "@anna:other.example",
        "--password-file",
        "-",
        given="long enough\n",
    )
    assert other.returncode == 1
    assert other.stderr.startswith("Error: @anna:other.example belongs to another server")


def test_without_a_terminal_create_user_requires_a_password_file(data: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "homeserver",
        "create-user",
        "-c",
        str(data / "homeserver.yaml"),
        "anna",
    ]
    asked = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert asked.returncode == 1
    assert asked.stderr.startswith("Error: there is no terminal")
    assert asked.stdout == ""


@pytest.mark.parametrize(
    ("place", "output"),
    [("folder", "it is a directory"), ("nowhere/homeserver.db", "the directory ")],
)
def test_an_unusable_database_path_is_reported(data: Path, place: str, output: str) -> None:
    config = data / "homeserver.yaml"
    (data / "folder").mkdir()
    config.write_text(config.read_text().replace("database: homeserver.db", f"database: {place}"))
    result = run_command(
        "create-user", "-c", str(config), "anna", "--password-file", "-", given="long enough\n"
    )
    assert result.returncode == 1
    assert "unable to open database file: " + output in result.stderr
    assert "Traceback" not in result.stderr


def test_a_full_disk_is_reported(data: Path) -> None:
    """A limit of 32 KiB on file sizes stands for a full disk. It allows opening the database."""
    config = str(data / "homeserver.yaml")
    words = ["create-user", "-c", config, "--password-file", "-"]
    assert run_command(*words, "anna", given="long enough\n").returncode == 0
    limited = [
        "sh",
        "-c",
        'ulimit -f 64 && exec "$@"',
        "sh",
        sys.executable,
        "-m",
        "homeserver",
        *words,
        "bob",
    ]
    refused = subprocess.run(
        limited, input="long enough\n", capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert refused.returncode == 1
    assert refused.stderr.startswith(
        f"Error: cannot use the database, the SQLite file {data / 'homeserver.db'}: "
    )


async def test_create_registration_token_stores_a_token(data: Path) -> None:
    config = data / "homeserver.yaml"
    config.write_text(
        config.read_text().replace("enable_registration: false", "enable_registration: true")
        + "registration_requires_token: true\n"
    )
    result = run_command("create-registration-token", "-c", str(config), "--uses", "1")
    assert (result.returncode, result.stderr) == (0, "")
    token = result.stdout.strip()
    database = open_inline(SQLiteConfig(str(data / "homeserver.db")))
    kept = await RegistrationTokenStore(database).get_registration_token(token)
    await database.close()
    assert kept == RegistrationTokenRow(token, uses_allowed=1)


def test_create_registration_token_names_the_options_it_needs(data: Path) -> None:
    result = run_command("create-registration-token", "-c", str(data / "homeserver.yaml"))
    assert result.returncode == 0
    assert "registration_requires_token" in result.stderr


def test_after_restore_requires_a_stopped_server(data: Path) -> None:
    words = ("after-restore", "-c", str(data / "homeserver.yaml"))
    absent = run_command(*words)
    assert absent.returncode == 1
    assert (
        f"there is no database {data / 'homeserver.db'}: copy the backup there first"
        in absent.stderr
    )
    assert not [*data.glob("homeserver.db*")]
    (data / "homeserver.db").touch()
    done = run_command(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1].endswith("start the server now.")
    server = ServerLock.acquire(SQLiteConfig(str(data / "homeserver.db")))
    try:
        refused = run_command(*words)
    finally:
        server.release()
    assert refused.returncode == 1
    assert "another server uses the SQLite file" in refused.stderr


def test_rescan_media_requires_a_scanner(data: Path) -> None:
    refused = call("rescan-media", "-c", data / "homeserver.yaml")
    assert refused.exit_code == 1
    assert "names no scanner" in refused.output


async def test_rescan_media_starts_a_rescan_and_follows_it(data: Path) -> None:
    config = data / "homeserver.yaml"
    with config.open("a", encoding="utf-8") as file:
        file.write("media_scanning: {forbidden_types: [application/zip]}\n")
    begun = run_command("rescan-media", "-c", str(config), "--days", "3")
    assert begun.returncode == 0, begun.stderr
    assert begun.stdout == "requested; the server begins within a minute\n"
    database = open_inline(SQLiteConfig(str(data / "homeserver.db")))
    store = make_rescan_store(load_config([config], {}).config.storage.media_scanning, database)
    rescan, _ = await store.get()
    assert rescan is not None
    assert rescan.began_ts - rescan.since_ts == 3 * 24 * 3600 * 1000
    lines: list[str] = []
    clock = Clock()
    following = Deferred.fromCoroutine(follow_rescan(store, clock, lines.append))
    clock.advance(1)
    for _ in range(2):
        await store.mark(10, rescan.began_ts)
        clock.advance(1)
    await following
    await database.close()
    assert lines == [
        "0 so far to be scanned again, 0 left, 0 harmful",
        "0 to be scanned again, 0 left, 0 harmful",
        "0 to be scanned again, ended, 0 harmful",
    ]


def test_routes_prints_method_and_path() -> None:
    lines = call("routes").output.splitlines()
    assert "GET /_matrix/client/versions" in lines
    assert all(
        line.split(" ")[0] in ("GET", "PUT", "POST", "DELETE") and line.count(" ") == 1
        for line in lines
    )


def test_a_server_without_its_key_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "homeserver.yaml").write_text("server_name: a.b\n")
    started = run_command("run", "--config", str(tmp_path / "homeserver.yaml"))
    assert started.returncode == 1
    assert "there is no signing key" in started.stderr


def test_the_log_file_is_readable_for_owner_and_group_only(tmp_path: Path) -> None:
    path = tmp_path / "server.log"
    before = os.umask(0)
    try:
        with open_log(path) as file:
            file.write("salom\n")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640
    path.chmod(0o644)  # an operator may change the mode
    with open_log(path) as file:
        file.write("yana\n")
    assert path.stat().st_mode & 0o777 == 0o644
    assert path.read_text() == "salom\nyana\n"


def test_an_unwritable_log_file_is_reported(tmp_path: Path) -> None:
    call("init", "example.org", "--folder", tmp_path)
    config = tmp_path / "homeserver.yaml"
    with config.open("a") as file:
        file.write("\nlog: {file: nowhere/server.log}\n")
    started = run_command("run", "--config", str(config))
    assert started.returncode == 1
    assert "the log file (log.file) cannot be written: " in started.stderr
    assert "Traceback" not in started.stderr


def run_command(*words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    return run_program("homeserver", *words, given=given, timeout=SECONDS)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with a configuration on a free port."""
    port = free_port()
    path = tmp_path / "homeserver.yaml"
    call("init", "example.org", "--folder", tmp_path)
    text = (
        path.read_text()
        .replace("port: 8008", f"port: {port}")
        .replace('["::1", "127.0.0.1"]', '["127.0.0.1"]')
    )
    path.write_text(f"{text}\npid_file: pid\nbcrypt_rounds: 4\n")
    return tmp_path


def test_run_serves_until_sigterm_and_create_user_works_meanwhile(data: Path) -> None:
    config = data / "homeserver.yaml"
    port = yaml.safe_load(config.read_text())["listeners"][0]["port"]
    provider = (
        "{idp_id: town, idp_name: Town, issuer: 'https://town.example', client_id: c, "
        "client_secret: s}"
    )
    config.write_text(
        f"{config.read_text()}\npublic_baseurl: https://matrix.example.org\noidc_providers: "
        f"[{provider}]\n"
    )
    with open(data / "log", "wb") as log:
        command = [sys.executable, "-m", "homeserver", "run", "--config", str(config)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}/_matrix/client/versions")
        assert int((data / "pid").read_text()) == process.pid
        result = run_command(
            "create-user",
            "-c",
            str(config),
            "alice",
            "--admin",
            "--password-file",
            "-",
            given="secret\n",
        )
        assert result.stdout == "created @alice:example.org, an administrator\n", result.stderr
        assert result.stderr == (
            "warning: The password must have at least 8 characters; "
            "users cannot choose such a password. Change it on the account page "
            "(/_mahalla/account) after the first login.\n"
        )
        repeated = run_command("create-user", "-c", str(config), "alice")
        assert (repeated.returncode, repeated.stdout, repeated.stderr) == (
            1,
            "",
            "Error: User ID already taken\n",
        )
        second = run_command("run", "-c", str(config))
        assert second.returncode == 1
        assert "another server uses the SQLite file" in second.stderr
        text = config.read_text().replace("homeserver.db", "other.db")
        (data / "same_port.yaml").write_text(text.replace("pid_file: pid", "pid_file: other_pid"))
        third = run_command("run", "-c", str(data / "same_port.yaml"))
        assert third.returncode == 1
        assert "cannot listen" in third.stderr
        os.kill(process.pid, signal.SIGTERM)
        os.kill(process.pid, signal.SIGINT)  # an impatient operator
        assert process.wait(timeout=SECONDS) == 0
    finally:
        process.kill()
        process.wait()
    assert not (data / "pid").exists()
    output = (data / "log").read_text()
    assert "redirect URI to register at oidc-town: https://" in output
    assert "Traceback" not in output


def wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            with urllib.request.urlopen(url, timeout=SECONDS) as answer:
                assert answer.status == 200
            return
        except OSError:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.05)
