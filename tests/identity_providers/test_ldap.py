"""Passwords and users of a real directory, OpenLDAP's slapd."""

from pathlib import Path
from typing import Any

import pytest

from homeserver.services.upstream.ldap import directory as asking
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from tests.helpers.audit_records import audit_records
from tests.helpers.browser import Browser
from tests.helpers.certificates import Authority
from tests.helpers.event_search import begin_jobs
from tests.helpers.http import Answer
from tests.helpers.logins import log_in
from tests.helpers.server import TestServer, User
from tests.helpers.slapd import BASE, PEOPLE, SECRET, STAFF, Slapd, config_of
from tests.helpers.upstream import check_imported_profile


@pytest.fixture
def server(tmp_path: Path, sqlite_database: Database, slapd: Slapd) -> TestServer:
    return TestServer(tmp_path, sqlite_database, config_of(slapd))


def signed_in(server: TestServer, name: str, password: str = "wonderland") -> User:
    answer = log_in(server, name, password)
    assert answer.status == 200, answer.body
    return User(server, answer.json)


def whoami(user: User) -> Answer:
    return user.get("/_matrix/client/v3/account/whoami")


def test_a_directory_password_signs_in(server: TestServer, slapd: Slapd) -> None:
    slapd.add_person("alice", cn="Alice Liddell", mail="Alice@Example.com")
    alice = signed_in(server, "alice")
    assert alice.user_id == "@alice:example.org"
    check_imported_profile(server, alice)
    for name in ("Alice", "@alice:example.org", "alice"):
        assert signed_in(server, name).user_id == alice.user_id
    browser = Browser(server)
    browser.open("/_mahalla/sign_in?next=/%3Fin")
    browser.send(name="alice", password="wonderland")
    assert browser.path == "/?in"
    body = {"type": "m.login.password", "identifier": {"type": "m.id.thirdparty", "medium": "email",
            "address": "alice@example.com"}, "password": "wonderland"}  # fmt: skip
    assert server.post("/_matrix/client/v3/login", body).status == 200


def test_wrong_names_and_passwords_are_refused(server: TestServer, slapd: Slapd) -> None:
    slapd.add_person("bob")
    slapd.add_person("visitor", staff=False)
    for name, password in (
        ("bob", "wrong"),
        ("bob", ""),
        ("bob", "wonder\0land"),
        ("bob", "w" * 600),
        ("visitor", "wonderland"),
        ("nobody", "wonderland"),
        ("*", "wonderland"),
        ("b*b", "wonderland"),
        ("bob)(uid=*", "wonderland"),
        ("bob\\2a", "wonderland"),
        ("@bob:elsewhere.example", "wonderland"),
        ("", "wonderland"),
        ("bob\0", "wonderland"),
    ):
        answer = log_in(server, name, password)
        assert (answer.status, answer.errcode) == (403, "M_FORBIDDEN"), (name, password)
    assert signed_in(server, "bob").user_id == "@bob:example.org"


def test_special_characters_in_names_are_escaped(server: TestServer, slapd: Slapd) -> None:
    slapd.add_person("o(brien)*")
    assert signed_in(server, "o(brien)*").user_id == "@o=28brien=29=2a:example.org"
    assert (
        signed_in(server, "@o=28brien=29=2a:example.org").user_id == "@o=28brien=29=2a:example.org"
    )


def test_an_account_belongs_to_the_entry_not_the_name(server: TestServer, slapd: Slapd) -> None:
    slapd.add_person("carol", "first")
    carol = signed_in(server, "carol", "first")
    slapd.remove_person("carol")
    slapd.add_person("carol", "second")  # another person with that name
    assert log_in(server, "carol", "second").status == 403
    begin_jobs(server)  # the first Carol was removed
    assert whoami(carol).status == 401
    assert log_in(server, "carol", "second").status == 403


def test_existing_accounts_are_linked_only_if_configured(
    tmp_path: Path, sqlite_database: Database, slapd: Slapd
) -> None:
    server = TestServer(tmp_path, sqlite_database, config_of(slapd))
    slapd.add_person("dora", "directory")
    server.register("dora", "own")
    assert log_in(server, "dora", "directory").status == 403
    assert signed_in(server, "dora", "own").user_id == "@dora:example.org"
    server = TestServer(
        tmp_path, sqlite_database, config_of(slapd, "  allow_existing_users: true"), 2
    )
    assert signed_in(server, "dora", "directory").user_id == "@dora:example.org"
    assert signed_in(server, "dora", "own").user_id == "@dora:example.org"


def test_local_passwords_can_be_disabled(
    tmp_path: Path, sqlite_database: Database, slapd: Slapd
) -> None:
    further = (
        config_of(slapd, "  allow_existing_users: true")
        + "\npassword_config: {localdb_enabled: false, policy: {enabled: false}}"
    )
    server = TestServer(tmp_path, sqlite_database, further)
    slapd.add_person("emil", "directory")
    server.register("emil", "own")
    assert log_in(server, "emil", "own").status == 403
    assert signed_in(server, "emil", "directory").user_id == "@emil:example.org"


def test_names_are_imported_at_each_sign_in(server: TestServer, slapd: Slapd) -> None:
    slapd.add_person("fay", cn="Fay")
    fay = signed_in(server, "fay")
    slapd.set("fay", cn="Fay Wray")
    signed_in(server, "fay")
    assert server.get(f"/_matrix/client/v3/profile/{fay.user_id}").json["displayname"] == "Fay Wray"
    for address in ("fay@example.org", "wray@example.org"):
        slapd.set("fay", mail=address)
        threepids = (
            signed_in(server, "fay").get("/_matrix/client/v3/account/3pid").json["threepids"]
        )
        assert [each["address"] for each in threepids] == [address]


def test_names_are_imported_when_they_change(
    server: TestServer, slapd: Slapd, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shown(user: User) -> tuple[str, list[str]]:
        name = server.get(f"/_matrix/client/v3/profile/{user.user_id}").json["displayname"]
        threepids = user.get("/_matrix/client/v3/account/3pid").json["threepids"]
        return name, [each["address"] for each in threepids]

    for uid in ("uma", "una"):
        slapd.add_person(uid, cn=uid.title(), mail=f"{uid}@example.org")
    uma, una = signed_in(server, "uma"), signed_in(server, "una")
    uma.put(f"/_matrix/client/v3/profile/{uma.user_id}/displayname", {"displayname": "G."})
    begin_jobs(server)  # checks run every twenty seconds from now on
    written: list[str] = []
    write = server.app.database.write

    async def counting(name: str, *given: Any) -> Any:
        written.append(name)
        return await write(name, *given)

    monkeypatch.setattr(server.app.database, "write", counting)
    server.clock.advance(20)
    assert {"set_synced_hashes", "set_profile_field", "set_provider_emails"}.isdisjoint(written)
    # users keep the names they chose while the directory is unchanged
    assert shown(uma) == ("G.", ["uma@example.org"])
    monkeypatch.setattr("homeserver.services.upstream.ldap.removed_users.MAX_CHANGED", 1)
    for uid in ("uma", "una"):
        slapd.set(uid, cn=f"{uid} Blas", mail=f"blas.{uid}@example.org")
    server.clock.advance(20)
    changed = [shown(user)[0].endswith("Blas") for user in (uma, una)]
    assert sorted(changed) == [False, True]
    server.clock.advance(20)
    assert shown(uma) == ("uma Blas", ["blas.uma@example.org"])
    assert shown(una) == ("una Blas", ["blas.una@example.org"])


def test_only_changed_values_are_imported(server: TestServer, slapd: Slapd) -> None:
    def shown(user: User) -> tuple[str, list[str]]:
        name = server.get(f"/_matrix/client/v3/profile/{user.user_id}").json["displayname"]
        threepids = user.get("/_matrix/client/v3/account/3pid").json["threepids"]
        return name, [each["address"] for each in threepids]

    for uid in ("ugo", "uri"):
        slapd.add_person(uid, cn=uid.title(), mail=f"{uid}@example.org")
    ugo, uri = signed_in(server, "ugo"), signed_in(server, "uri")
    for user in (ugo, uri):
        user.put(f"/_matrix/client/v3/profile/{user.user_id}/displayname", {"displayname": "Mine"})

    def forget(txn: WriteTransaction) -> None:
        sql = (
            "UPDATE external_ids SET synced_name_hash = NULL, synced_addresses_hash ="
            " NULL WHERE user_id = ?"
        )
        txn.execute(sql, (uri.user_id,))

    server.run(server.app.database.write("forget", forget))
    for uid in ("ugo", "uri"):
        slapd.set(uid, mail=f"new.{uid}@example.org")
    begin_jobs(server)
    assert shown(ugo) == ("Mine", ["new.ugo@example.org"])
    assert shown(uri) == (
        "Mine",
        ["uri@example.org"],
    )  # the directory's last value is unknown
    slapd.set("uri", cn="Uri Again")
    server.clock.advance(20)
    assert shown(uri) == ("Uri Again", ["uri@example.org"])


def test_an_address_of_another_account_is_retried(
    server: TestServer, slapd: Slapd, monkeypatch: pytest.MonkeyPatch
) -> None:
    def addresses(user: User) -> list[str]:
        return [
            each["address"]
            for each in user.get("/_matrix/client/v3/account/3pid").json["threepids"]
        ]

    for uid, address in (("abe", "abe@example.org"), ("ada", "office@example.org")):
        slapd.add_person(uid, mail=address)
    abe, ada = signed_in(server, "abe"), signed_in(server, "ada")
    begin_jobs(server)
    slapd.set("abe", mail="office@example.org")
    server.clock.advance(20)
    assert addresses(abe) == ["abe@example.org"]  # Ada has the other address
    monkeypatch.setattr("homeserver.services.upstream.ldap.removed_users.MAX_CHANGED", 1)
    slapd.set("ada", mail="ada@example.org")
    server.clock.advance(20)  # his retries do not delay others
    assert addresses(ada) == ["ada@example.org"]
    server.clock.advance(20)
    assert addresses(abe) == ["office@example.org"]


@pytest.mark.parametrize("at_once", [200, 1])
def test_users_swap_their_addresses(
    server: TestServer, slapd: Slapd, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    """Swap addresses in a pair and in a ring of three, also if a check imports only one user."""

    def addresses(user: User) -> list[str]:
        return [
            each["address"]
            for each in user.get("/_matrix/client/v3/account/3pid").json["threepids"]
        ]

    monkeypatch.setattr("homeserver.services.upstream.ldap.removed_users.MAX_CHANGED", at_once)
    names = [f"sw{letter}{at_once}" for letter in "abcde"]
    for uid in names:
        slapd.add_person(uid, mail=f"{uid}@example.org")
    people = [signed_in(server, uid) for uid in names]
    begin_jobs(server)
    after = [names[place] for place in (1, 0, 3, 4, 2)]
    for uid, other in zip(names, after, strict=True):
        slapd.set(uid, mail=f"{other}@example.org")
    for _ in range(6 if at_once == 1 else 1):
        server.clock.advance(20)
    assert [addresses(user) for user in people] == [[f"{other}@example.org"] for other in after]


def test_the_directory_password_confirms_operations(server: TestServer, slapd: Slapd) -> None:
    slapd.add_person("gus")
    gus = signed_in(server, "gus")
    path = f"/_matrix/client/v3/devices/{gus.device_id}"
    asked = gus.delete(path, {})
    assert (asked.status, asked.json["flows"]) == (401, [{"stages": ["m.login.password"]}])
    auth: dict[str, Any] = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": "gus"},
        "session": asked.json["session"],
    }
    assert gus.delete(path, {"auth": {**auth, "password": "wrong"}}).status == 401
    assert gus.delete(path, {"auth": {**auth, "password": "wonderland"}}).status == 200


def test_a_user_signs_in_by_bind_mode_over_ldaps(
    tmp_path: Path, sqlite_database: Database, slapd: Slapd
) -> None:
    slapd.add_person("hal,9000")
    further = f"""
ldap_providers:
- uri: ["ldap://127.0.0.1:1", "{slapd.secure_url}"]
  tls_ca_file: {slapd.authority}
  base: "{PEOPLE}"
  mode: bind
"""
    server = TestServer(tmp_path, sqlite_database, further)
    assert signed_in(server, "hal,9000").user_id == "@hal=2c9000:example.org"
    assert log_in(server, "hal,9000", "wrong").status == 403
    assert log_in(server, "hal", "wonderland").status == 403


def test_an_invalid_certificate_is_refused(
    tmp_path: Path, sqlite_database: Database, slapd: Slapd
) -> None:
    slapd.add_person("ida")
    other = Authority(tmp_path, "other").path
    port = slapd.url.rpartition(":")[2]
    for uri, authority in (
        (slapd.url, other),
        (slapd.secure_url, other),
        (f"ldap://127.0.0.1:{port}", slapd.authority),
    ):
        further = (
            f"ldap_providers: [{{uri: ['{uri}'], tls_ca_file: {authority},"
            f" base: '{PEOPLE}', mode: bind}}]"
        )
        answer = log_in(TestServer(tmp_path, sqlite_database, further), "ida")
        assert (answer.status, answer.errcode) == (503, "M_UNKNOWN"), uri


# Removed users.


@pytest.mark.parametrize("leaves", ["remove_person", "remove_from_staff"])
def test_a_removed_user_loses_access(server: TestServer, slapd: Slapd, leaves: str) -> None:
    stays, goes = f"stays-{leaves}", f"goes-{leaves}"
    for uid in (stays, goes):
        slapd.add_person(uid)
    staying, going = signed_in(server, stays), signed_in(server, goes)
    begin_jobs(server)
    assert (whoami(staying).status, whoami(going).status) == (200, 200)
    getattr(slapd, leaves)(goes)
    begin_jobs(server)
    assert (whoami(staying).status, whoami(going).status) == (200, 401)
    assert log_in(server, goes).status == 403


def test_a_login_of_a_removed_user_starts_a_check(server: TestServer, slapd: Slapd) -> None:
    slapd.add_person("jack")
    jack = signed_in(server, "jack")
    slapd.remove_from_staff("jack")
    assert log_in(server, "jack").status == 403
    assert whoami(jack).status == 401


def test_a_returned_user_is_unlocked(
    tmp_path: Path, sqlite_database: Database, slapd: Slapd
) -> None:
    server = TestServer(tmp_path, sqlite_database, config_of(slapd, "  removed_users: lock"))
    for uid in ("kate", "karl"):
        slapd.add_person(uid)
    kate, karl = signed_in(server, "kate"), signed_in(server, "karl")
    server.run(server.app.user_data.accounts.do_set_flags(karl.user_id, locked=True))
    for uid in ("kate", "karl"):
        slapd.remove_from_staff(uid)
        begin_jobs(server)
    assert whoami(kate).errcode == "M_USER_LOCKED"
    for uid in ("kate", "karl"):
        slapd.add_to_staff(uid)
    assert log_in(server, "karl").errcode == "M_USER_LOCKED"
    assert audit_records(server, karl.user_id)[-1] == ("sign_in_refused", "locked")
    begin_jobs(server)
    assert whoami(kate).status == 200
    assert whoami(karl).errcode == "M_USER_LOCKED"  # locked by an administrator


def test_a_faulty_directory_removes_nobody(
    tmp_path: Path, sqlite_database: Database, slapd: Slapd, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"crowd{number}" for number in range(4)]
    for uid in names:
        slapd.add_person(uid)
    server = TestServer(tmp_path, sqlite_database, config_of(slapd))
    crowd = [signed_in(server, uid) for uid in names]

    def all_are_here() -> bool:
        begin_jobs(server)
        return all(whoami(each).status == 200 for each in crowd)

    slapd.stop()  # the directory does not respond
    assert all_are_here()
    answer = log_in(server, names[0])
    assert (answer.status, answer.errcode) == (503, "M_UNKNOWN")
    slapd.start()

    for further in (  # wrong bind password, empty base, filter without matches
        config_of(slapd).replace(SECRET, "wrong"),
        config_of(slapd).replace(PEOPLE, f"ou=nowhere,{BASE}"),
        config_of(slapd).replace(STAFF, f"cn=nobody,{BASE}"),
    ):
        server = TestServer(tmp_path, sqlite_database, further, 2)
        assert all_are_here()

    server = TestServer(tmp_path, sqlite_database, config_of(slapd), 3)
    monkeypatch.setattr(asking, "PAGE_SIZE", 2)  # several pages of results
    assert all_are_here()
    for uid in names[:2]:  # half of them at once, more than the limit
        slapd.remove_from_staff(uid)
    assert all_are_here()
    slapd.add_to_staff(names[0])
    begin_jobs(server)
    assert [whoami(each).status for each in crowd] == [200, 401, 200, 200]
