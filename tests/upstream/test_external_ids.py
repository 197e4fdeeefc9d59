"""Links between subjects of identity providers and accounts, in the admin API; icons of
providers."""

from pathlib import Path

import pytest

from storage.engine.database import Database
from storage.threepids.threepids import ThreepidRow
from tests.helpers.browser import Browser
from tests.helpers.images import opened, picture
from tests.helpers.openid import CONFIG, TEMPLATES, OpenIDProvider
from tests.helpers.server import TestServer, User
from tests.helpers.upstream import ALICE, open_provider, sign_in

USERS = "/_mahalla/admin/v1/users/{}/external_ids"
FIND = "/_synapse/admin/v1/auth_providers/oidc-town/users/"
ICON = "/_mahalla/upstream/icon/oidc-town"
REDIRECT = "/_matrix/client/v3/login/sso/redirect?redirectUrl=https://element.example/"


@pytest.fixture
def server(tmp_path: Path, sqlite_database: Database, provider: OpenIDProvider) -> TestServer:
    return TestServer(tmp_path, sqlite_database, CONFIG + TEMPLATES, web=provider)


def test_administrators_list_links(
    server: TestServer, provider: OpenIDProvider, root: User
) -> None:
    alice = sign_in(server, provider, Browser(server))
    assert root.get(FIND + "1").json == {"user_id": alice.user_id}
    assert root.get(FIND + "2").errcode == "M_NOT_FOUND"
    [link] = root.get(USERS.format(alice.user_id)).json["external_ids"]
    assert (link["auth_provider"], link["external_id"]) == ("oidc-town", "1")
    assert root.get(USERS.format(root.user_id)).json == {"external_ids": []}
    assert root.get(USERS.format("@nobody:example.org")).errcode == "M_NOT_FOUND"
    assert alice.get(FIND + "1").errcode == "M_FORBIDDEN"
    assert (
        alice.put(USERS.format(root.user_id) + "/oidc-town", {"external_id": "9"}).errcode
        == "M_FORBIDDEN"
    )


def test_administrators_link_an_existing_account(
    server: TestServer, provider: OpenIDProvider, root: User
) -> None:
    bob = server.register("bob")
    links = USERS.format(bob.user_id)
    assert root.put(f"{links}/oidc-town", {"external_id": "b"}).status == 200
    assert root.put(f"{links}/oidc-town", {"external_id": "b"}).status == 200  # repeated
    assert (
        sign_in(server, provider, Browser(server), sub="b", preferred_username="robert").user_id
        == bob.user_id
    )
    assert root.put(f"{links}/oidc-town", {"external_id": "c"}).status == 200  # replaces the link
    assert root.get(FIND + "b").errcode == "M_NOT_FOUND"
    assert root.get(FIND + "c").json == {"user_id": bob.user_id}
    taken = root.put(USERS.format(root.user_id) + "/oidc-town", {"external_id": "c"})
    assert (taken.status, taken.errcode) == (409, "M_UNKNOWN")
    assert root.delete(f"{links}/oidc-town").status == 200
    assert root.delete(f"{links}/oidc-town").errcode == "M_NOT_FOUND"
    records = server.run(server.app.accounts.audit.get_records(bob.user_id, 20))
    done = [(each.event, each.by_user) for each in records if "linked" in each.event]
    assert done == [("unlinked", root.user_id), ("linked", root.user_id), ("linked", root.user_id)]


@pytest.mark.parametrize(
    "body", [{}, {"external_id": ""}, {"external_id": "a\0"}, {"external_id": "x" * 513}]
)
def test_invalid_links_are_refused(root: User, body: dict[str, str]) -> None:
    assert root.put(USERS.format(root.user_id) + "/oidc-town", body).status == 400
    assert (
        root.put(USERS.format(root.user_id) + "/oidc-twon", {"external_id": "1"}).errcode
        == "M_INVALID_PARAM"
    )


def test_administrators_find_the_user_of_an_address(server: TestServer, root: User) -> None:
    row = ThreepidRow("email", "root@example.org", root.user_id, 1, 1)
    server.run(server.app.database.write("address", server.app.email.threepids.add_threepid, row))
    find = "/_synapse/admin/v1/threepid/{}/users/{}"
    assert root.get(find.format("email", "Root@example.org")).json == {"user_id": root.user_id}
    assert root.get(find.format("email", "nobody@example.org")).errcode == "M_NOT_FOUND"
    assert root.get(find.format("msisdn", "1")).errcode == "M_NOT_FOUND"
    assert root.get(find.format("pigeon", "1")).errcode == "M_INVALID_PARAM"


def test_icons_of_providers_are_served(
    tmp_path: Path, sqlite_database: Database, provider: OpenIDProvider
) -> None:
    before = TestServer(tmp_path, sqlite_database, CONFIG + TEMPLATES, web=provider)
    root = before.register("root")
    headers = {"Content-Type": "image/png"}
    upload = before.client.request(
        "POST",
        "/_matrix/media/v3/upload",
        token=root.token,
        body=picture(300, 200),
        headers=headers,
    )
    with_icon = CONFIG + f"  idp_icon: {upload.json['content_uri']}\n" + TEMPLATES
    server = TestServer(tmp_path, sqlite_database, with_icon, web=provider, seed=2)
    browser = Browser(server)
    browser.open("/_mahalla/sign_in")
    assert f'<img src="{ICON}" alt="" height="24">' in browser.text
    assert "img-src 'self'" in browser.answer.headers["content-security-policy"]
    shown = server.get(ICON)
    assert (shown.status, opened(shown.body).size) == (200, (144, 96))
    assert server.get("/_mahalla/upstream/icon/other").errcode == "M_NOT_FOUND"
    assert before.get(ICON).errcode == "M_NOT_FOUND"
    assert ICON not in Browser(before).open("/_mahalla/sign_in").body.decode()


def test_a_link_survives_a_change_of_the_display_name(
    server: TestServer, provider: OpenIDProvider
) -> None:
    alice = sign_in(server, provider, Browser(server))
    browser = Browser(server)
    browser.open(
        provider.sign_in(open_provider(browser), **{**ALICE, "preferred_username": "other"})
    )
    assert alice.user_id in browser.text
