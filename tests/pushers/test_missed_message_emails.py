"""E-mails about missed messages: when they are sent, what they contain, and how to unsubscribe."""

import re
from pathlib import Path

import pytest

from federation.protocol.ids import UserID
from homeserver.services.email.smtp import DeliveryFailed
from storage.engine.database import Database, SQLiteConfig
from tests.conftest import run_coroutine
from tests.helpers.clocks import pass_time, settle
from tests.helpers.databases import QueryCounter, open_inline
from tests.helpers.email_addresses import CLIENT_SECRET, confirm_on_page, email_auth, request_token
from tests.helpers.email_notifications import (
    EMAIL_CONFIG,
    HOUR,
    MINUTE,
    plain_and_html,
    register_email_reader,
    set_email_pusher,
    start_with_email,
    unsubscribe_link,
)
from tests.helpers.federated_rooms import create_room
from tests.helpers.leases import stop_renewing
from tests.helpers.logins import password_auth
from tests.helpers.notified_rooms import create_shared_room
from tests.helpers.room_actions import say
from tests.helpers.server import TestServer, User

V3 = "/_matrix/client/v3"


@pytest.fixture
def server(tmp_path: Path, database: Database) -> TestServer:
    return start_with_email(tmp_path, database)


def test_an_email_is_sent_when_a_message_stays_unread_for_a_while(server: TestServer) -> None:
    alice, bob = register_email_reader(server), server.register("bob")
    room_id = create_shared_room(alice, bob, name="Tea & cake")
    event_id = say(bob, room_id, "hello <b>")
    settle(server)
    pass_time(server, 9 * MINUTE, MINUTE)
    assert server.relay.emails == []
    pass_time(server, 2 * MINUTE, MINUTE)
    [(recipient, letter)] = server.relay.emails
    assert recipient == "alice@example.com"
    assert letter["Subject"] == "[Example] Message from bob in Tea & cake"
    plain, html = plain_and_html(letter)
    assert "hello <b>" in plain
    assert f"https://matrix.to/#/{room_id}" in plain
    assert "hello &lt;b&gt;" in html
    assert "Tea &amp; cake" in html
    assert event_id in html
    pass_time(server, 24 * HOUR, HOUR)
    assert len(server.relay.emails) == 1, "nothing is told twice"


@pytest.mark.parametrize(
    "name",
    [
        "=?utf-8?q?Tea=0D=0ABcc:_mallory@example.com?=",
        "=?utf-8?b?DQoNCjxoMT5ZT1VSIEFDQ09VTlQ8L2gxPg==?=",
        "=?utf-8?q?Tea?= =?utf-8?q?=0AX-Evil:_1?=",
        "=?utf-7?q?+2D0-?=",
        "=?unicode_escape?q?=5Cud800?=",
        "=?=?utf-8?q?=0D=0AX-Evil:_1?=",
        "Tea\r\nX-Evil: 1",
        "Tea\u2028\u0085 & cake",
    ],
)
@pytest.mark.parametrize("whose", ["room", "person"])
def test_a_name_cannot_inject_headers_into_an_email(
    server: TestServer, name: str, whose: str
) -> None:
    alice, bob = register_email_reader(server), server.register("bob")
    room_id = create_shared_room(alice, bob, name=name if whose == "room" else "Tea")
    if whose == "person":
        assert (
            bob.put(f"{V3}/profile/{bob.user_id}/displayname", {"displayname": name}).status == 200
        )
    say(bob, room_id, "hello")
    pass_time(server, 11 * MINUTE, MINUTE)
    [(_, letter)] = server.relay.emails
    assert {key.lower() for key in letter} == {
        "subject",
        "from",
        "to",
        "date",
        "message-id",
        "auto-submitted",
        "list-unsubscribe",
        "list-unsubscribe-post",
        "mime-version",
        "content-type",
        "content-language",
    }
    plain, html = plain_and_html(letter)
    assert "hello" in plain
    assert "hello" in html
    assert letter["Subject"].startswith("[Example] Message from ")


def test_an_expired_account_gets_no_email(tmp_path: Path, sqlite_database: Database) -> None:
    server = start_with_email(
        tmp_path,
        sqlite_database,
        EMAIL_CONFIG + "account_validity: {enabled: true, period: 100d}\n",
    )
    alice, bob = register_email_reader(server), server.register("bob")
    room_id = create_shared_room(alice, bob)
    renewals, now = server.app.accounts.renewals, int(server.clock.seconds() * 1000)
    server.run(
        renewals.do_set_expiry(
            alice.user_id, now, sends_email=False, by=UserID("@root:example.org")
        )
    )
    say(bob, room_id, "waits already")
    settle(server)
    assert server.run(renewals.do_mark_expired(10)) == 1
    settle(server)
    say(bob, room_id, "hello")
    pass_time(server, 30 * MINUTE, MINUTE)
    assert server.relay.emails == []
    server.run(
        renewals.do_set_expiry(
            alice.user_id, None, sends_email=False, by=UserID("@root:example.org")
        )
    )
    settle(server)
    say(bob, room_id, "hello again")
    pass_time(server, 2 * HOUR, MINUTE)
    assert len(server.relay.emails) == 1


def test_a_message_that_was_read_causes_no_email(server: TestServer) -> None:
    alice, bob = register_email_reader(server), server.register("bob")
    room_id = create_shared_room(alice, bob)
    event_id = say(bob, room_id, "hello")
    pass_time(server, 5 * MINUTE, MINUTE)
    alice.post(f"{V3}/rooms/{room_id}/receipt/m.read/{event_id}")
    pass_time(server, 4 * MINUTE, MINUTE)
    say(bob, room_id, "later")
    pass_time(server, 8 * MINUTE, MINUTE)
    assert server.relay.emails == [], "the later one has waited for eight minutes"
    pass_time(server, 4 * MINUTE, MINUTE)
    [(_, letter)] = server.relay.emails
    plain, _ = plain_and_html(letter)
    assert "later" in plain
    assert "hello" not in plain


def test_emails_about_one_room_back_off_until_it_is_read(server: TestServer) -> None:
    alice, bob = register_email_reader(server), server.register("bob")
    room_id = create_shared_room(alice, bob)
    event_id = say(bob, room_id, "0")
    for number in range(36):
        pass_time(server, 20 * MINUTE, MINUTE)
        event_id = say(bob, room_id, str(number + 1))
    assert 3 <= len(server.relay.emails) <= 5  # in twelve hours
    alice.post(f"{V3}/rooms/{room_id}/receipt/m.read/{event_id}")
    server.relay.emails.clear()
    pass_time(server, 20 * MINUTE, MINUTE)
    say(bob, room_id, "after")
    pass_time(server, 12 * MINUTE, MINUTE)
    assert len(server.relay.emails) == 1, "who reads is written to as at first"


def test_the_backoff_of_a_busy_room_does_not_delay_another_room(server: TestServer) -> None:
    alice, bob = register_email_reader(server), server.register("bob")
    noisy, other = (
        create_shared_room(alice, bob, name="Noisy"),
        create_shared_room(alice, bob, name="Other"),
    )
    for _ in range(6):
        say(bob, noisy, "x")
        pass_time(server, 30 * MINUTE, MINUTE)
    server.relay.emails.clear()
    say(bob, other, "y")
    pass_time(server, 11 * MINUTE, MINUTE)
    [(_, letter)] = server.relay.emails
    assert "Other" in plain_and_html(letter)[0]


def test_one_email_covers_several_rooms(server: TestServer) -> None:
    alice, bob = register_email_reader(server), server.register("bob")
    first, second = (
        create_shared_room(alice, bob, name="First"),
        create_shared_room(alice, bob, name="Second"),
    )
    for number in range(8):
        say(bob, first, f"number {number}")
    say(bob, second, "x")
    pass_time(server, 11 * MINUTE, MINUTE)
    [(_, letter)] = server.relay.emails
    assert letter["Subject"] == "[Example] New in Second and elsewhere"
    plain, _ = plain_and_html(letter)
    assert "== First" in plain
    assert "== Second" in plain
    assert "number 7" in plain
    assert "number 2" not in plain
    assert "Further messages: 3" in plain


def test_a_long_name_is_truncated_in_an_email(server: TestServer) -> None:
    alice, bob = register_email_reader(server), server.register("bob")
    room_id = create_shared_room(alice, bob, name="Tea")
    member = {"membership": "join", "displayname": "x" * 20_000}
    bob.put(f"{V3}/rooms/{room_id}/state/m.room.member/{bob.user_id}", member)
    say(bob, room_id, "hello")
    pass_time(server, 11 * MINUTE, MINUTE)
    [(_, letter)] = server.relay.emails
    assert letter["Subject"].startswith("[Example] Message from xxx")
    assert len(letter["Subject"]) < 400
    assert len(letter.as_bytes()) < 10_000


def test_an_invite_causes_an_email(server: TestServer) -> None:
    alice, bob = register_email_reader(server), server.register("bob")
    room_id = create_room(bob, name="Tea", preset="private_chat")
    bob.post(f"{V3}/rooms/{room_id}/invite", {"user_id": alice.user_id})
    pass_time(server, 11 * MINUTE, MINUTE)
    [(_, letter)] = server.relay.emails
    assert letter["Subject"] == "[Example] bob invites you to Tea"
    assert "You are invited to this room." in plain_and_html(letter)[0]


def test_an_email_says_only_that_there_is_an_encrypted_message(server: TestServer) -> None:
    alice, bob = register_email_reader(server), server.register("bob")
    room_id = create_shared_room(alice, bob)
    content = {
        "algorithm": "m.megolm.v1.aes-sha2",
        "ciphertext": "AwgA",
        "session_id": "s",
        "body": "clear",
    }
    bob.put(f"{V3}/rooms/{room_id}/send/m.room.encrypted/1", content)
    pass_time(server, 11 * MINUTE, MINUTE)
    [(_, letter)] = server.relay.emails
    plain, html = plain_and_html(letter)
    assert "Encrypted message" in plain
    assert not {"AwgA", "clear"} & set(re.findall(r"\w+", plain + html))


def test_an_email_omits_content_when_the_operator_disables_it(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = start_with_email(
        tmp_path, sqlite_database, EMAIL_CONFIG + "push: {include_content: false}\n"
    )
    alice, bob = register_email_reader(server), server.register("bob")
    say(bob, create_shared_room(alice, bob), "secret")
    pass_time(server, 11 * MINUTE, MINUTE)
    [(_, letter)] = server.relay.emails
    assert "secret" not in "".join(plain_and_html(letter))


def test_links_lead_to_the_configured_client(tmp_path: Path, sqlite_database: Database) -> None:
    config = EMAIL_CONFIG.replace(
        "enable_notifs: true", "enable_notifs: true, client_base_url: 'https://chat.example.org/'"
    )
    server = start_with_email(tmp_path, sqlite_database, config)
    alice, bob = register_email_reader(server), server.register("bob")
    room_id = create_shared_room(alice, bob)
    say(bob, room_id, "x")
    pass_time(server, 11 * MINUTE, MINUTE)
    [(_, letter)] = server.relay.emails
    assert f"https://chat.example.org/#/room/{room_id}" in plain_and_html(letter)[0]


@pytest.mark.parametrize(
    ("lang", "text"),
    [
        ("uz", "Bunday xatlar kerak emas"),
        ("uz-Cyrl", "Бундай хатлар керак эмас"),
        ("kaa", "Bunday xatlar kerek emes"),
        ("ru-RU", "Больше не присылать таких писем"),
        ("fr", "Unsubscribe"),
    ],
)
def test_an_email_is_in_the_language_of_the_pusher(
    tmp_path: Path, sqlite_database: Database, lang: str, text: str
) -> None:
    server = start_with_email(tmp_path, sqlite_database)
    alice, bob = (
        register_email_reader(server, lang=lang, data={"brand": "Chat"}),
        server.register("bob"),
    )
    say(bob, create_shared_room(alice, bob), "x")
    pass_time(server, 11 * MINUTE, MINUTE)
    [(_, letter)] = server.relay.emails
    assert text in plain_and_html(letter)[0]
    assert str(letter["Subject"]).startswith("[Example] ")


def test_an_email_shows_times_in_the_time_zone_of_the_reader(server: TestServer) -> None:
    alice, bob = register_email_reader(server), server.register("bob")
    assert alice.put(f"{V3}/profile/{alice.user_id}/m.tz", {"m.tz": "Asia/Tashkent"}).status == 200
    say(bob, create_shared_room(alice, bob), "x")
    pass_time(server, 11 * MINUTE, MINUTE)
    [(_, letter)] = server.relay.emails
    assert "2023-11-15 03:13" in plain_and_html(letter)[0]


def test_the_unsubscribe_link_stops_the_emails(server: TestServer) -> None:
    alice, bob = register_email_reader(server), server.register("bob")
    room_id = create_shared_room(alice, bob)
    say(bob, room_id, "x")
    pass_time(server, 11 * MINUTE, MINUTE)
    link = unsubscribe_link(server.relay.emails[0][1])
    page = server.get(link)
    assert page.status == 200
    assert "alice@example.com" in page.body.decode()
    assert len(alice.get(f"{V3}/pushers").json["pushers"]) == 1, "opening the page ends nothing"
    answer = server.client.request("POST", link, body=b"List-Unsubscribe=One-Click")
    assert answer.status == 200
    assert "You will no longer receive these e-mails" in answer.body.decode()
    assert alice.get(f"{V3}/pushers").json["pushers"] == []
    assert "You will no longer receive these e-mails" in server.get(link).body.decode()
    say(bob, room_id, "y")
    pass_time(server, 24 * HOUR, HOUR)
    assert len(server.relay.emails) == 1


@pytest.mark.parametrize(
    "change", [("signature=", "signature=A"), ("pusher=1", "pusher=2"), ("pusher=1&", "")]
)
def test_a_tampered_unsubscribe_link_is_refused(
    server: TestServer, change: tuple[str, str]
) -> None:
    alice, bob = register_email_reader(server), server.register("bob")
    say(bob, create_shared_room(alice, bob), "x")
    pass_time(server, 11 * MINUTE, MINUTE)
    link = unsubscribe_link(server.relay.emails[0][1]).replace(*change)
    assert server.get(link).status == 400
    assert server.client.request("POST", link, body=b"List-Unsubscribe=One-Click").status == 400
    assert len(alice.get(f"{V3}/pushers").json["pushers"]) == 1


def test_an_email_pusher_needs_an_address_of_the_account(server: TestServer) -> None:
    alice, bob = register_email_reader(server), server.register("bob")
    assert set_email_pusher(bob).errcode == "M_INVALID_PARAM"
    assert set_email_pusher(alice, "other@example.com").errcode == "M_INVALID_PARAM"
    assert set_email_pusher(alice, "no address").errcode == "M_INVALID_PARAM"
    assert set_email_pusher(alice, app_id="other").errcode == "M_INVALID_PARAM"
    assert set_email_pusher(alice, data={"brand": "a\nb"}).errcode == "M_INVALID_PARAM"
    assert set_email_pusher(alice, " Alice@EXAMPLE.com").status == 200
    assert len(alice.get(f"{V3}/pushers").json["pushers"]) == 1


def test_an_email_pusher_ends_with_the_address_and_not_with_the_session(server: TestServer) -> None:
    alice = register_email_reader(server)
    body = password_auth("alice")
    other = User(server, server.post(f"{V3}/login", body).json)
    alice.post(f"{V3}/logout")
    assert len(other.get(f"{V3}/pushers").json["pushers"]) == 1
    other.post(f"{V3}/account/3pid/delete", {"medium": "email", "address": "alice@example.com"})
    assert other.get(f"{V3}/pushers").json["pushers"] == []


@pytest.mark.parametrize("wanted", [True, False])
def test_a_new_account_with_an_address_gets_an_email_pusher_when_configured(
    tmp_path: Path, sqlite_database: Database, wanted: bool
) -> None:
    config = (
        EMAIL_CONFIG
        if wanted
        else EMAIL_CONFIG.replace(
            "enable_notifs: true", "enable_notifs: true, notif_for_new_users: false"
        )
    )
    server = start_with_email(tmp_path, sqlite_database, config)
    sid = request_token(server, "register").json["sid"]
    _, letter = server.relay.emails[-1]
    plain, _ = plain_and_html(letter)
    [link] = re.findall(r"https://matrix\.example\.org(/\S+)", plain)
    assert confirm_on_page(server, link).status == 200
    auth = email_auth({"sid": sid, "client_secret": CLIENT_SECRET})
    body = {"username": "alice", "password": "wonderland", "auth": auth}
    answer = server.client.request(
        "POST", f"{V3}/register", json=body, headers={"Accept-Language": "ru, en;q=0.5"}
    )
    alice = User(server, answer.json)
    pushers = alice.get(f"{V3}/pushers").json["pushers"]
    assert [each["pushkey"] for each in pushers] == (["alice@example.com"] if wanted else [])
    if wanted:
        server.relay.emails.clear()
        bob = server.register("bob")
        say(bob, create_shared_room(alice, bob), "x")
        pass_time(server, 11 * MINUTE, MINUTE)
        assert "Больше не присылать" in plain_and_html(server.relay.emails[0][1])[0]


def test_a_restart_neither_loses_nor_repeats_an_email(tmp_path: Path, database: Database) -> None:
    server = start_with_email(tmp_path, database)
    alice, bob = register_email_reader(server), server.register("bob")
    say(bob, create_shared_room(alice, bob), "x")
    settle(server)
    stop_renewing(server.app.pushers.reading)
    later = start_with_email(tmp_path, database, seed=2, now=server.clock.seconds() + 31)
    pass_time(later, 12 * MINUTE, MINUTE)
    assert len(later.relay.emails) == 1
    restarted = start_with_email(tmp_path, database, seed=3, now=later.clock.seconds() + 31)
    pass_time(restarted, 60 * MINUTE, MINUTE)
    assert restarted.relay.emails == []


@pytest.mark.parametrize("how", ["redacted", "purged", "too old"])
def test_a_delayed_email_omits_messages_that_were_removed_meanwhile(
    tmp_path: Path, database: Database, how: str
) -> None:
    server = start_with_email(tmp_path, database, EMAIL_CONFIG + "retention: {enabled: true}\n")
    alice, bob = register_email_reader(server), server.register("bob")
    room_id, other = (
        create_shared_room(alice, bob, name="Tea"),
        create_shared_room(alice, bob, name="Cake"),
    )
    assert (
        bob.put(
            f"{V3}/rooms/{room_id}/state/m.room.retention/", {"max_lifetime": 20 * MINUTE * 1000}
        ).status
        == 200
    )
    server.relay.failure = DeliveryFailed("no connection", permanent=False)
    gone = say(bob, room_id, "zanjabil")
    say(bob, room_id, "the newest, which a purge spares")
    say(bob, other, "cinnamon")
    pass_time(server, 12 * MINUTE, MINUTE)
    waiting = "SELECT attempts FROM email_outbox"
    assert server.run(database.read("read", lambda txn: bool(txn.query(waiting))))
    if how == "redacted":
        assert bob.put(f"{V3}/rooms/{room_id}/redact/{gone}/1", {}).status == 200
    elif how == "purged":
        (stored,) = server.run(server.app.rooms.events.get_in_any_room([gone])).values()
        until = stored.event.origin_server_ts + 1
        assert server.run(
            server.app.retention.purges.do_start(
                room_id, None, until, include_local=True, by=bob.user_id
            )
        )
        assert server.run(server.app.retention.purges.do_step(10)) == 2
    if how != "too old":  # gone from the database in the same write
        assert not server.run(database.read("read", lambda txn: bool(txn.query(waiting))))
    else:
        pass_time(server, 9 * MINUTE, MINUTE)
    server.relay.failure = None
    pass_time(server, 90 * MINUTE, MINUTE)
    [(_, letter)] = server.relay.emails
    for text in plain_and_html(letter):
        assert "cinnamon" in text
        assert "zanjabil" not in text


def test_a_message_to_a_user_whose_emails_are_paused_costs_no_query_for_the_pause(
    tmp_path: Path, sqlite: SQLiteConfig
) -> None:
    counter = QueryCounter()
    database = open_inline(sqlite, counter)
    server = start_with_email(tmp_path, database)
    alice, bob = register_email_reader(server), server.register("bob")
    room_id = create_shared_room(alice, bob)
    event_id = say(bob, room_id, "0")
    for number in range(8):
        pass_time(server, 20 * MINUTE, MINUTE)
        event_id = say(bob, room_id, str(number))
        settle(server)
    counter.clear()
    event_id = say(bob, room_id, "x")
    settle(server)
    assert counter.reads["get_email_pauses"] == 0
    server.relay.emails.clear()
    alice.post(f"{V3}/rooms/{room_id}/receipt/m.read/{event_id}")
    pass_time(server, 3 * MINUTE, MINUTE)
    say(bob, room_id, "after")
    pass_time(server, 12 * MINUTE, MINUTE)
    assert len(server.relay.emails) == 1, "who has read meanwhile is written to"
    run_coroutine(database.close(), None)


def test_the_queries_for_an_email_do_not_grow_with_the_number_of_messages(
    tmp_path: Path, sqlite: SQLiteConfig
) -> None:
    counter = QueryCounter()
    database = open_inline(sqlite, counter)
    server = start_with_email(tmp_path, database)
    alice, bob = register_email_reader(server), server.register("bob")
    costs: list[int] = []
    for number in (1, 30):
        room_id = create_shared_room(alice, bob)
        for each in range(number):
            say(bob, room_id, str(each))
        pass_time(server, 9 * MINUTE, MINUTE)
        server.relay.emails.clear()
        counter.clear()
        pass_time(server, 2 * MINUTE, MINUTE)
        assert len(server.relay.emails) == 1
        assert counter.reads["get_memberships"] <= 2
        costs.append(sum(counter.queries.values()))
    assert costs[1] <= costs[0] + 2, costs
    run_coroutine(database.close(), None)


@pytest.mark.parametrize(
    ("app_name", "brand", "called", "sender"),
    [
        ("Example", "Chat", "Example", "Example"),
        ("Example", None, "Example", "Example"),
        (None, "Chat", "Chat", "Matrix"),
        (None, "Postmaster <root@example.com>", "Postmaster <root@example.com>", "Matrix"),
        (None, None, "Matrix", "Matrix"),
    ],
)
def test_an_email_uses_the_configured_name_of_the_service(
    tmp_path: Path,
    sqlite_database: Database,
    app_name: str | None,
    brand: str | None,
    called: str,
    sender: str,
) -> None:
    """The `From` header names the server, even if the app sets a brand."""
    config = (
        EMAIL_CONFIG if app_name is not None else EMAIL_CONFIG.replace(", app_name: Example", "")
    )
    server = start_with_email(tmp_path, sqlite_database, config)
    alice, bob = (
        register_email_reader(server, data={} if brand is None else {"brand": brand}),
        server.register("bob"),
    )
    say(bob, create_shared_room(alice, bob), "x")
    pass_time(server, 11 * MINUTE, MINUTE)
    [(_, letter)] = server.relay.emails
    assert str(letter["Subject"]).startswith(f"[{called}] ")
    assert str(letter["From"]) == f"{sender} <noreply@example.org>"
