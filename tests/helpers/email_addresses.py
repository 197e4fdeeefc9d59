"""E-mail addresses of accounts: validation by a link, and their addition to an account."""

import re
from html import unescape
from typing import Any
from urllib.parse import urlencode

from tests.helpers.http import Answer
from tests.helpers.logins import password_auth
from tests.helpers.room_actions import V3
from tests.helpers.server import TestServer, User

EMAIL_CONFIG = """
public_baseurl: https://matrix.example.org/
email: {smtp_host: mail.example.org, notif_from: "%(app)s <noreply@example.org>", app_name: Example}
rc_3pid_validation: *unlimited
"""
CLIENT_SECRET = "client_secret.0"


def request_token(
    server: TestServer, kind: str, email: str = "alice@example.com", **further: Any
) -> Answer:
    """Request a validation e-mail. `kind`: `register`, `account/password` or `account/3pid`."""
    body = {"client_secret": CLIENT_SECRET, "email": email, "send_attempt": 1, **further}
    return server.post(f"{V3}/{kind}/email/requestToken", body)


def link_in_email(server: TestServer, number: int = -1) -> str:
    """Return the path and query of the link in an e-mail, by default the last one."""
    _, email_message = server.relay.emails[number]
    text = email_message.get_body(("plain",))
    assert text is not None
    [link] = re.findall(r"https://matrix\.example\.org(/\S+)", text.get_content())
    return str(link)


def confirm_on_page(server: TestServer, link: str) -> Answer:
    """Open the page and press its button."""
    page = server.get(link)
    assert page.status == 200
    html = page.body.decode()
    action = re.search(r'<form method="post" action="([^"]+)">', html)
    assert action is not None
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', html))
    body = urlencode({name: unescape(value) for name, value in fields.items()}).encode()
    return server.client.request("POST", action[1], body=body)


def validate_email(
    server: TestServer, kind: str, email: str = "alice@example.com", **further: Any
) -> dict[str, str]:
    """Validate an address; return its `threepid_creds`."""
    answer = request_token(server, kind, email, **further)
    assert answer.status == 200, answer.body
    assert confirm_on_page(server, link_in_email(server)).status == 200
    return {"sid": answer.json["sid"], "client_secret": CLIENT_SECRET}


def email_auth(creds: dict[str, str]) -> dict[str, object]:
    """Return the `auth` of a request that a validated address authorizes."""
    return {"type": "m.login.email.identity", "threepid_creds": creds}


def add_email(server: TestServer, user: User, email: str = "alice@example.com") -> None:
    """Validate an address and add it to the user's account."""
    name = user.user_id[1:].partition(":")[0]
    answer = user.post(
        f"{V3}/account/3pid/add",
        {**validate_email(server, "account/3pid", email), "auth": password_auth(name)},
    )
    assert answer.status == 200, answer.body
