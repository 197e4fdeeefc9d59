"""Plug-ins of an institution: the examples in the documentation, and failing plug-ins."""

import hashlib
import hmac
import time
from pathlib import Path

import pytest

from homeserver.services.plugins.hooks import hookimpl, load_plugin
from storage.engine.database import Database
from tests.helpers.audit_records import audit_records
from tests.helpers.http import Answer
from tests.helpers.logins import log_in
from tests.helpers.server import TestServer, User

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples" / "plugins"


@pytest.fixture(autouse=True)
def _examples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


class AtFault:
    """Fails when it is created or called."""

    def __init__(self, config: dict[str, object]) -> None:
        if config.get("at_start"):
            raise RuntimeError("no")

    @hookimpl
    async def check_sign_in(self, user_id: str, way: str, address: str) -> str | None:
        raise RuntimeError("no")


class Misspelt:
    """Has a method with an unknown parameter."""

    @hookimpl
    def check_sign_in(self, user: str) -> str | None:
        return None


def make_misspelt(_config: dict[str, object]) -> Misspelt:
    return Misspelt()


def register(server: TestServer, name: str) -> Answer:
    body = {"username": name, "password": "wonderland", "auth": {"type": "m.login.dummy"}}
    return server.post("/_matrix/client/v3/register", body)


def test_a_plugin_checks_passwords(
    tmp_path: Path, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = hashlib.scrypt(b"wonderland", salt=b"salt", n=2**14, r=8, p=1).hex()
    people = tmp_path / "people"
    people.write_text(f"17:alice:Alice Liddell:{b'salt'.hex()}:{hashed}\n", encoding="utf-8")
    config = f"plugins: [{{module: campus_passwords.CampusPasswords, config: {{path: {people}}}}}]"

    async def at_once(work: object, *args: object, **options: object) -> object:
        assert callable(work)
        return work(*args, **options)

    server = TestServer(tmp_path, sqlite_database, config)
    monkeypatch.setattr("campus_passwords.deferToThread", at_once)
    for name, password in (
        ("alice", "wrong"),
        ("alice", ""),
        ("bob", "wonderland"),
        ("@alice:other.example", "wonderland"),
    ):
        assert log_in(server, name, password).errcode == "M_FORBIDDEN"
    alice = User(server, log_in(server, "alice").json)
    assert alice.user_id == "@alice:example.org"
    assert (
        server.get(f"/_matrix/client/v3/profile/{alice.user_id}").json["displayname"]
        == "Alice Liddell"
    )
    path = f"/_matrix/client/v3/devices/{alice.device_id}"
    asked = alice.delete(path, {}).json
    auth = {"type": "m.login.password", "session": asked["session"], "password": "wonderland"}
    auth |= {"identifier": {"type": "m.id.user", "user": "alice"}}
    assert alice.delete(path, {"auth": auth}).status == 200
    people.write_text(
        people.read_text(encoding="utf-8").replace("17:", "18:"), encoding="utf-8"
    )  # another user
    assert log_in(server, "alice").errcode == "M_FORBIDDEN"


def test_a_plugin_refuses_registrations(tmp_path: Path, sqlite_database: Database) -> None:
    config = "plugins: [{module: staff_names.StaffNames, config: {offices: [rector]}}]"
    server = TestServer(tmp_path, sqlite_database, config)
    for name, text in (("alice", "first.last"), ("the.rector", "belongs to an office")):
        answer = register(server, name)
        assert answer.errcode == "M_FORBIDDEN"
        assert text in answer.json["error"]
    assert register(server, "alice.liddell").status == 200


def test_a_plugin_refuses_logins(
    tmp_path: Path, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = (
        "plugins: [{module: office_hours.OfficeHours, "
        "config: {from: 7, until: 19, network: 10.0.0.0/8}}]"
    )
    server = TestServer(tmp_path, sqlite_database, config)
    server.register("alice")
    for hour, ip, status in (
        (6, "192.0.2.1", 403),
        (6, "10.1.2.3", 200),
        (7, "192.0.2.1", 200),
        (19, "2001:db8::1", 403),
    ):
        monkeypatch.setattr(
            "office_hours.time.localtime",
            lambda hour=hour: time.struct_time((2026, 1, 1, hour, *[0] * 5)),
        )
        assert log_in(server, "alice", ip=ip).status == status, (hour, ip)
    assert [event for event, _ in audit_records(server)].count("session_began") == 3
    assert audit_records(server).count(("sign_in_refused", "not_allowed")) == 2


def test_a_plugin_checks_captchas(tmp_path: Path, sqlite_database: Database) -> None:
    config = """enable_registration_captcha: true
recaptcha_public_key: ours
plugins: [{module: own_captcha.OwnCaptcha, config: {key: shared}}]
"""
    server = TestServer(tmp_path, sqlite_database, config)

    def solve(name: str, solution: str) -> Answer:
        auth = {"type": "m.login.recaptcha", "response": solution}
        return server.post(
            "/_matrix/client/v3/register",
            {"username": name, "password": "wonderland", "auth": auth},
        )

    def signed(end: float, key: bytes = b"shared") -> str:
        return f"{end}.n1.{hmac.new(key, f'{end}.n1'.encode(), 'sha256').hexdigest()}"

    later = time.time() + 600
    for wrong in ("guessed", signed(later, b"other"), signed(1), f"{later}.n1."):
        assert solve("alice", wrong).errcode == "M_CAPTCHA_INVALID"
    assert solve("alice", signed(later)).status == 200
    assert solve("bob", signed(later)).errcode == "M_CAPTCHA_INVALID"  # it was used


def test_a_plugin_sends_text_messages(tmp_path: Path, sqlite_database: Database) -> None:
    folder = tmp_path / "outgoing"
    folder.mkdir()
    config = f"""public_baseurl: https://matrix.example.org/
registrations_require_3pid: [msisdn]
plugins: [{{module: spooled_messages.SpooledMessages, config: {{folder: '{folder}'}}}}]
"""
    server = TestServer(tmp_path, sqlite_database, config)
    body = {
        "client_secret": "secret",
        "country": "UZ",
        "phone_number": "90 123 45 67",
        "send_attempt": 1,
    }
    asked = server.post("/_matrix/client/v3/register/msisdn/requestToken", body)
    assert asked.status == 200
    [message] = folder.iterdir()
    head, _, text = message.read_bytes().partition(b"\n\n")
    assert head == b"To: 998901234567\nAlphabet: UCS"
    code = text.decode("utf-16-be").partition(" ")[0]
    typed = {"sid": asked.json["sid"], "client_secret": "secret", "token": code}
    assert server.post("/_mahalla/confirm_number", typed).json == {"success": True}


def test_text_messages_without_a_sender_stop_the_start(
    tmp_path: Path, sqlite_database: Database
) -> None:
    config = """public_baseurl: https://matrix.example.org/
registrations_require_3pid: [msisdn]
plugins: [{module: own_captcha.OwnCaptcha, config: {key: shared}}]
"""
    with pytest.raises(ValueError, match="this server sends no text messages"):
        TestServer(tmp_path, sqlite_database, config)


def test_captchas_without_a_check_stop_the_start(tmp_path: Path, sqlite_database: Database) -> None:
    config = """enable_registration_captcha: true
recaptcha_public_key: ours
plugins: [{module: staff_names.StaffNames}]
"""
    with pytest.raises(ValueError, match="recaptcha_private_key is needed"):
        TestServer(tmp_path, sqlite_database, config)


def test_a_failing_plugin_lets_nobody_in(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(tmp_path, sqlite_database, f"plugins: [{{module: {__name__}.AtFault}}]")
    server.register("alice")
    assert log_in(server, "alice").status == 500


@pytest.mark.parametrize(
    "entry",
    [
        "{module: nowhere.Plugin}",
        f"{{module: {__name__}.Nobody}}",
        "{module: Plugin}",
        f"{{module: {__name__}.AtFault, config: {{at_start: true}}}}",
        f"{{module: {__name__}.make_misspelt}}",
    ],
)
def test_an_invalid_plugin_stops_the_start(
    tmp_path: Path, sqlite_database: Database, entry: str
) -> None:
    with pytest.raises(ValueError, match="plug-in"):
        TestServer(tmp_path, sqlite_database, f"plugins: [{entry}]")


def test_a_plugin_is_created_with_its_settings() -> None:
    made = load_plugin("office_hours.OfficeHours", {"from": 1, "until": 2, "network": "10.0.0.0/8"})
    assert type(made).__name__ == "OfficeHours"
