"""The content scanner's API, as clients speak it: with ClamAV's own daemon, and files that a client
library has encrypted."""

import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import vodozemac
from nio.crypto.attachments import encrypt_attachment

from storage.engine.database import Database
from storage.engine.transaction import Transaction
from tests.helpers.federated_media import DOWNLOAD, OPEN
from tests.helpers.http import Answer, Pending
from tests.helpers.images import picture
from tests.helpers.media_files import upload_file
from tests.helpers.media_scanning import HeldVerdicts, begin_upload
from tests.helpers.scanners import EICAR, EICAR_FOUND, RunningScanners
from tests.helpers.server import TestServer, User

PROXY = "/_matrix/media_proxy/unstable"
TEA = b"green tea" * 30_000
OURS = "/_mahalla/admin/v1/media"


@pytest.fixture
def alice(tmp_path: Path, sqlite_database: Database, scanners: RunningScanners) -> Iterator[User]:
    config = (
        f"media_scanning:"
        f" {{clamd: '{scanners.unix}', forbidden_types: [application/x-executable]}}\n"
    )
    server = TestServer(tmp_path, sqlite_database, config)
    yield server.register("alice")
    server.app.media.close_workers()


def encrypted(user: User, data: bytes) -> dict[str, Any]:
    """Upload it as a client does into an encrypted room; how the event describes it."""
    ciphertext, keys = encrypt_attachment(data)
    return {**keys, "url": f"mxc://{upload_file(user, ciphertext, 'application/octet-stream')}"}


def address_of(file: dict[str, Any]) -> str:
    return str(file["url"]).removeprefix("mxc://")


def sealed(user: User, body: object) -> dict[str, Any]:
    """The body, encrypted for the server."""
    key = user.server.get(f"{PROXY}/public_key").json["public_key"]
    encryption = vodozemac.PkEncryption.from_key(vodozemac.Curve25519PublicKey.from_base64(key))
    message = encryption.encrypt(json.dumps(body).encode())
    names = {
        "ciphertext": message.ciphertext,
        "mac": message.mac,
        "ephemeral": message.ephemeral_key,
    }
    return {
        "encrypted_body": {
            name: b64encode(value).decode().rstrip("=") for name, value in names.items()
        }
    }


def post(user: User, what: str, body: object) -> Answer:
    return user.post(f"{PROXY}/{what}_encrypted", body)


def reason(answer: Answer) -> tuple[int, str]:
    assert answer.json["info"]
    assert answer.json["errcode"] == answer.json["reason"]
    return answer.status, answer.json["reason"]


@pytest.mark.parametrize("how", ["plain", "sealed"])
def test_decrypted_contents_are_scanned(alice: User, how: str) -> None:
    clean, harmful = encrypted(alice, TEA), encrypted(alice, TEA + EICAR + TEA)
    assert (
        alice.get(f"{DOWNLOAD}/{address_of(harmful)}").status == 200
    )  # nobody can see what is in it

    def body(file: dict[str, Any]) -> dict[str, Any]:
        return {"file": file} if how == "plain" else sealed(alice, {"file": file})

    assert post(alice, "scan", body(clean)).json == {"clean": True, "info": "The file is clean"}
    given = post(alice, "download", body(clean))
    assert (
        given.body == alice.get(f"{DOWNLOAD}/{address_of(clean)}").body != TEA
    )  # as it is kept: the client decrypts it
    assert given.headers["content-type"] == "application/octet-stream"

    verdict = post(alice, "scan", body(harmful))
    assert (verdict.status, verdict.json["clean"]) == (200, False)
    assert reason(post(alice, "download", body(harmful))) == (403, "MCS_MEDIA_NOT_CLEAN")


def test_a_finding_in_decrypted_content_quarantines_the_file(alice: User) -> None:
    bob = alice.server.register("bob")
    root = alice.server.register("root")
    alice.server.run(alice.server.app.user_data.accounts.do_set_flags(root.user_id, is_admin=True))
    file = encrypted(alice, EICAR)
    address = address_of(file)
    assert post(bob, "scan", {"file": file}).json["clean"] is False
    assert alice.get(f"{DOWNLOAD}/{address}").errcode == "M_FORBIDDEN"
    (found,) = [each for each in root.get(f"{OURS}/harmful").json["harmful"] if each["is_inside"]]
    assert (found["key_shown_by"], found["scan"]["found"]) == (bob.user_id, EICAR_FOUND)
    assert [each["media_id"] for each in found["files"]] == [address.partition("/")[2]]
    events = root.get(f"/_mahalla/admin/v1/users/{alice.user_id}/audit").json["records"]
    assert "file_found_harmful" in [each["event"] for each in events]
    assert root.post(f"/_synapse/admin/v1/media/unquarantine/{address}").status == 200
    assert post(bob, "scan", {"file": file}).json["clean"] is True
    assert alice.get(f"{DOWNLOAD}/{address}").status == 200


def test_a_finding_without_a_token_quarantines_nothing(
    tmp_path: Path, sqlite_database: Database, scanners: RunningScanners
) -> None:
    server = TestServer(
        tmp_path, sqlite_database, f"{OPEN}media_scanning: {{clamd: '{scanners.unix}'}}\n"
    )
    alice = server.register("alice")
    file = encrypted(alice, EICAR)
    assert server.post(f"{PROXY}/scan_encrypted", {"file": file}).json["clean"] is False
    assert reason(server.post(f"{PROXY}/download_encrypted", {"file": file})) == (
        403,
        "MCS_MEDIA_NOT_CLEAN",
    )
    assert alice.get(f"{DOWNLOAD}/{address_of(file)}").status == 200
    assert server.get(f"{PROXY}/scan/{upload_file(alice, TEA)}").json["clean"] is True
    server.app.media.close_workers()


def test_a_finding_with_another_key_quarantines_nothing(alice: User) -> None:
    """Rules that see little of a file could be met by trying keys: what they find counts for that
    key alone."""
    victim = b"\x7fELF" + bytes(200)
    file = encrypted(alice, victim)
    assert reason(post(alice, "download", {"file": file})) == (403, "MCS_MIME_TYPE_FORBIDDEN")
    other = {**file, "key": {**file["key"], "k": b64encode(bytes(32)).decode().rstrip("=")}}
    assert post(alice, "scan", {"file": other}).json["clean"] is True
    assert post(alice, "scan", {"file": file}).json["clean"] is False
    assert alice.get(f"{DOWNLOAD}/{address_of(file)}").status == 200


def test_a_verdict_is_cached_without_the_key(alice: User, tmp_path: Path) -> None:
    file = encrypted(alice, TEA)
    for _ in range(2):
        assert post(alice, "scan", {"file": file}).json["clean"] is True
    scanned = alice.server.registry.get_sample_value(
        "mahalla_media_scans_total", {"outcome": "clean"}
    )
    assert scanned == 2  # what is kept, and what is inside

    def select(txn: Transaction) -> list[tuple[Any, ...]]:
        return txn.query(
            "SELECT digest, hash, version, finding, by_user_id FROM media_scans"
            " WHERE digest <> hash"
        )

    (row,) = alice.server.run(alice.server.app.database.read("rows", select))
    assert row[3:] == (None, None)
    assert not [
        each
        for each in (tmp_path / "media_store").rglob("*")
        if each.is_file() and TEA[:50] in each.read_bytes()
    ]


def test_unencrypted_files_are_scanned(alice: User) -> None:
    image = picture(300, 200)
    clean = upload_file(alice, image, "image/png")
    assert alice.get(f"{PROXY}/scan/{clean}").json == {"clean": True, "info": "The file is clean"}
    given = alice.get(f"{PROXY}/download/{clean}")
    assert (given.status, given.body, given.headers["content-type"]) == (200, image, "image/png")
    assert (
        alice.get(f"{PROXY}/thumbnail/{clean}?width=96&height=96&method=crop").headers[
            "content-type"
        ]
        == "image/png"
    )
    assert alice.get(f"{PROXY}/thumbnail/{clean}?width=0&height=96").errcode == "M_INVALID_PARAM"
    for data, why in (
        (EICAR, "MCS_MEDIA_NOT_CLEAN"),
        (b"\x7fELF" + bytes(100), "MCS_MIME_TYPE_FORBIDDEN"),
    ):
        headers = {"Content-Type": "text/plain"}
        alice.server.client.request(
            "POST", "/_matrix/media/v3/upload", token=alice.token, body=data, headers=headers
        )
        ids = {
            each["media_id"]: each["scan"]["state"]
            for each in alice.get("/_mahalla/client/v1/media").json["media"]
        }
        for media_id in [each for each, state in ids.items() if state == "harmful"]:
            path = f"example.org/{media_id}"
            verdict = alice.get(f"{PROXY}/scan/{path}")
            assert (verdict.status, verdict.json["clean"]) == (200, False)
        assert why in {
            alice.get(f"{PROXY}/{what}/example.org/{media_id}{query}").json["reason"]
            for media_id, state in ids.items()
            if state == "harmful"
            for what, query in (("download", ""), ("thumbnail", "?width=9&height=9"))
        }
    assert reason(alice.get(f"{PROXY}/download/example.org/none")) == (404, "M_NOT_FOUND")
    assert reason(alice.get(f"{PROXY}/scan/example.org/none")) == (404, "M_NOT_FOUND")
    assert reason(alice.get(f"{PROXY}/scan/far.example/abc")) == (502, "MCS_MEDIA_REQUEST_FAILED")
    assert reason(alice.server.get(f"{PROXY}/download/{clean}")) == (404, "M_NOT_FOUND")
    assert alice.server.get(f"{PROXY}/download/{clean}", token="wrong").errcode == "M_UNKNOWN_TOKEN"


def _without(file: dict[str, Any], *path: str) -> dict[str, Any]:
    copied: dict[str, Any] = json.loads(json.dumps(file))
    at = copied
    for name in path[:-1]:
        at = at[name]
    del at[path[-1]]
    return copied


def test_malformed_bodies_are_refused(alice: User) -> None:
    file = encrypted(alice, TEA)
    wrong: list[object] = [
        [],
        {},
        {"file": None},
        {"file": {**file, "v": "v1"}},
        {"file": {**file, "url": "https://example.org/a"}},
        {"file": {**file, "url": "mxc://exa mple/a"}},
        {"file": {**file, "iv": "AAAA"}},
        {"file": {**file, "iv": "é"}},
        {"file": {**file, "key": {**file["key"], "k": "short"}}},
        {"file": {**file, "key": {**file["key"], "alg": "A128CTR"}}},
        {"encrypted_body": {"ciphertext": "AAAA"}},
        *(
            {"file": _without(file, *path)}
            for path in (("url",), ("iv",), ("key", "k"), ("hashes", "sha256"))
        ),
    ]
    for body in wrong:
        for what in ("scan", "download"):
            assert reason(post(alice, what, body)) == (400, "MCS_MALFORMED_JSON"), body
    for raw in (b"", b"{", b"\xff", b'{"file": ' + b"[" * 20_000, b'{"more": ' + b"[" * 20_000):
        answer = alice.server.client.request(
            "POST", f"{PROXY}/scan_encrypted", token=alice.token, body=raw
        )
        assert reason(answer) == (400, "MCS_MALFORMED_JSON")


def test_undecryptable_files_are_refused(alice: User) -> None:
    file = encrypted(alice, TEA)
    other = {**file, "hashes": {"sha256": b64encode(bytes(32)).decode()}}
    assert reason(post(alice, "scan", {"file": other})) == (400, "MCS_MEDIA_FAILED_TO_DECRYPT")
    assert reason(post(alice, "download", {"file": {**file, "url": "mxc://example.org/none"}})) == (
        404,
        "M_NOT_FOUND",
    )

    body = sealed(alice, {"file": file})["encrypted_body"]
    broken: list[dict[str, Any]] = [
        {**body, "mac": "AAAAAAAAAAA"},
        {**body, "ephemeral": b64encode(bytes(32)).decode()},
        {**body, "ephemeral": "AAAA"},
        {**body, "ciphertext": "!"},
        {**body, "ciphertext": ""},
        sealed(alice, {"file": {}})[
            "encrypted_body"
        ],  # opened, and told like what was not: else its padding could be tried
        sealed(alice, [])["encrypted_body"],
    ]
    for each in broken:
        assert reason(post(alice, "scan", {"encrypted_body": each})) == (
            403,
            "MCS_BAD_DECRYPTION",
        ), each
    padded = {name: value + "=" * (-len(value) % 4) for name, value in body.items()}
    assert post(alice, "scan", {"encrypted_body": padded, "file": 5}).status == 400
    assert post(alice, "scan", {"encrypted_body": padded}).json["clean"] is True


def test_the_public_key_stays_the_same(
    alice: User, tmp_path: Path, scanners: RunningScanners
) -> None:
    config = f"media_scanning: {{clamd: '{scanners.unix}'}}\n"
    restarted = TestServer(tmp_path, alice.server.app.database, config, seed=2)
    other = TestServer(
        tmp_path, alice.server.app.database, config, seed=3, server_name="other.example"
    )
    keys = [
        server.get(f"{PROXY}/public_key").json["public_key"]
        for server in (alice.server, restarted, other)
    ]
    assert keys[0] == keys[1] != keys[2]


def test_requests_fail_while_no_scanner_is_available(
    alice: User, scanners: RunningScanners
) -> None:
    file = encrypted(alice, TEA)
    scanners.stop_clamd()
    try:
        alice.server.clock.advance(60)
        assert reason(post(alice, "scan", {"file": file})) == (502, "MCS_MEDIA_REQUEST_FAILED")
    finally:
        scanners.start_clamd()
    alice.server.clock.advance(60)
    assert post(alice, "scan", {"file": file}).json["clean"] is True


def test_the_number_of_keys_per_file_is_limited(
    tmp_path: Path, sqlite_database: Database, scanners: RunningScanners
) -> None:
    config = (
        f"rc_media_scan: {{per_second: 1, burst_count: 2}}\nmedia_scanning:"
        f" {{clamd: '{scanners.unix}'}}\n"
    )
    server = TestServer(tmp_path, sqlite_database, config)
    alice, bob = server.register("alice"), server.register("bob")
    files = [encrypted(alice, b"%d" % number) for number in range(3)]
    statuses = [post(alice, "scan", {"file": each}).status for each in (*files, files[0], files[1])]
    assert statuses == [200, 200, 429, 200, 200]  # what was scanned costs nothing
    assert post(bob, "scan", {"file": files[2]}).status == 200
    assert post(alice, "scan", {"file": files[2]}).status == 200


def test_a_file_kind_that_is_not_scanned_at_upload_is_scanned_by_the_api(
    tmp_path: Path, sqlite_database: Database, scanners: RunningScanners
) -> None:
    server = TestServer(
        tmp_path, sqlite_database, f"media_scanning: {{clamd: '{scanners.unix}', files: []}}\n"
    )
    alice = server.register("alice")
    harmful = upload_file(alice, EICAR)
    assert alice.get(f"{DOWNLOAD}/{harmful}").status == 200
    assert reason(alice.get(f"{PROXY}/download/{harmful}")) == (403, "MCS_MEDIA_NOT_CLEAN")


def test_scans_of_decrypted_content_are_fair_among_users(held: User) -> None:
    """A user with many requests delays neither new files nor other users who ask for the same
    files."""
    bob, carol = held.server.register("bob"), held.server.register("carol")
    HeldVerdicts.is_quick = True
    mine, theirs = (
        [encrypted(held, b"mine %d" % number) for number in range(6)],
        encrypted(held, b"theirs"),
    )
    for file in (*mine, theirs):
        assert held.get(f"{PROXY}/scan/{address_of(file)}").status == 200
    HeldVerdicts.is_quick = False
    HeldVerdicts.seen.clear()

    def begin(user: User, file: dict[str, Any]) -> Pending:
        body = json.dumps({"file": file}).encode()
        return user.server.client.start(
            "POST", f"{PROXY}/scan_encrypted", token=user.token, body=body
        )

    asked = [begin(held, file) for file in mine] + [begin(bob, file) for file in mine]
    assert HeldVerdicts.seen == [b"mine 0"]  # one of the two turns is for others
    late = begin(carol, theirs)
    assert HeldVerdicts.seen == [b"mine 0", b"theirs"]
    uploading = begin_upload(carol, b"milk")
    assert HeldVerdicts.seen[2:] == [b"milk"]
    while HeldVerdicts.waiting:
        HeldVerdicts.waiting.pop().callback(None)
    assert uploading.answer.status == 200
    assert {each.answer.status for each in (*asked, late)} == {200}
