"""Riddles before somebody registers: in an app, on the fallback page, on the page to register."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from federation.http_client.client import WebAnswer
from federation.http_client.errors import OutboundError
from storage.engine.database import Database
from tests.helpers.browser import Browser
from tests.helpers.http import Answer
from tests.helpers.oauth import CONFIG
from tests.helpers.server import TestServer

REGISTER = "/_matrix/client/v3/register"
PAGE = "/_mahalla/register"
STAGE = "m.login.recaptcha"
RIDDLES = """
enable_registration_captcha: true
recaptcha_public_key: site-key
recaptcha_private_key: our-secret
"""
FIELD = "g-recaptcha-response"
WIDGET_SOURCES = "https://www.recaptcha.net/recaptcha/ https://www.gstatic.com/recaptcha/"


class Riddler:
    """Who makes the riddles: takes each right solution once. `answer` is said instead, or
    raised."""

    def __init__(self) -> None:
        self.right = {"solved"}
        self.answer: bytes | int | OutboundError | None = None
        self.asked: list[dict[str, list[str]]] = []

    async def request(
        self,
        method: str,
        url: str,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes = b"",
        *,
        seconds: float = 30,
        max_bytes: int = 1 << 20,
        redirects: int = 0,
        only_https: bool = False,
    ) -> WebAnswer:
        assert (method, url, only_https, redirects) == (
            "POST",
            "https://www.recaptcha.net/recaptcha/api/siteverify",
            True,
            0,
        )
        form = parse_qs(body.decode())
        self.asked.append(form)
        if isinstance(self.answer, OutboundError):
            raise self.answer
        if isinstance(self.answer, int):
            return WebAnswer(url, self.answer, {}, b"")
        if self.answer is not None:
            return WebAnswer(url, 200, {}, self.answer)
        [solution] = form["response"]
        if solution in self.right:
            self.right.remove(solution)
            return WebAnswer(url, 200, {}, b'{"success": true, "hostname": "example.org"}')
        return WebAnswer(
            url, 200, {}, b'{"success": false, "error-codes": ["invalid-input-response"]}'
        )


@pytest.fixture
def riddler() -> Riddler:
    return Riddler()


@pytest.fixture
def guarded(tmp_path: Path, sqlite_database: Database, riddler: Riddler) -> TestServer:
    return TestServer(tmp_path, sqlite_database, CONFIG + RIDDLES, web=riddler)


def solve(server: TestServer, response: object, **auth: str) -> Answer:
    body = {"username": "bob", "password": "builder"}
    return server.post(REGISTER, {**body, "auth": {"type": STAGE, "response": response, **auth}})


def test_an_app_shows_that_somebody_has_solved_it(guarded: TestServer, riddler: Riddler) -> None:
    asked = guarded.post(REGISTER, {"username": "bob", "password": "builder"}).json
    assert asked["flows"] == [{"stages": [STAGE]}]
    assert asked["params"] == {STAGE: {"public_key": "site-key"}}
    wrong = solve(guarded, "guessed", session=asked["session"])
    assert (wrong.status, wrong.errcode) == (401, "M_CAPTCHA_INVALID")
    assert solve(guarded, "solved", session=asked["session"]).json["user_id"] == "@bob:example.org"
    assert riddler.asked[-1] == {"secret": ["our-secret"], "response": ["solved"]}


@pytest.mark.parametrize("response", [None, "", 7, ["solved"]])
def test_without_a_solution_nobody_is_asked(
    guarded: TestServer, riddler: Riddler, response: object
) -> None:
    answer = solve(guarded, response)
    assert (answer.status, answer.errcode, riddler.asked) == (401, "M_CAPTCHA_NEEDED", [])


@pytest.mark.parametrize("response", ["x" * 12_001, "s\u00f6lved"])
def test_what_is_no_solution_goes_nowhere(
    guarded: TestServer, riddler: Riddler, response: str
) -> None:
    answer = solve(guarded, response)
    assert (answer.status, answer.errcode, riddler.asked) == (401, "M_CAPTCHA_INVALID", [])


@pytest.mark.parametrize(
    "said",
    [
        500,
        302,
        OutboundError("it is down"),
        b"<html>",
        b"[" * 50_000,
        b"{}",
        b'{"success": "true"}',
        b'{"success": true, "error-codes": ["\xff"]}',
        b'{"success": false, "error-codes": ["invalid-input-secret"]}',
    ],
)
def test_while_nobody_says_so_nobody_passes(
    guarded: TestServer, riddler: Riddler, said: Any
) -> None:
    riddler.answer = said
    answer = solve(guarded, "solved")
    assert (answer.status, answer.errcode) == (401, "M_UNKNOWN")
    assert "cannot be checked at the moment" in answer.json["error"]
    riddler.answer = None
    assert solve(guarded, "solved", session=answer.json["session"]).status == 200


def test_it_stands_beside_what_else_is_asked_for(
    tmp_path: Path, sqlite_database: Database, riddler: Riddler
) -> None:
    rules = "registration_requires_token: true\n"
    server = TestServer(tmp_path, sqlite_database, CONFIG + RIDDLES + rules, web=riddler)
    asked = server.post(REGISTER, {"username": "bob", "password": "builder"}).json
    assert asked["flows"] == [{"stages": ["m.login.registration_token", STAGE]}]
    assert (
        solve(server, "solved", session=asked["session"]).status == 401
    )  # not yet, and the solution is not used up
    assert riddler.asked == []


def test_the_fallback_page(guarded: TestServer) -> None:
    session = guarded.post(REGISTER, {"username": "bob", "password": "builder"}).json["session"]
    browser = Browser(guarded)
    browser.open(f"/_matrix/client/v3/auth/{STAGE}/fallback/web?session={session}")
    assert 'class="g-recaptcha" data-sitekey="site-key"' in browser.text
    assert "The captcha cannot be loaded from www.recaptcha.net" in browser.words
    policy = browser.answer.headers["content-security-policy"]
    assert f"script-src https://www.recaptcha.net/recaptcha/api.js {WIDGET_SOURCES}" in policy
    assert f"frame-src {WIDGET_SOURCES}" in policy
    assert "default-src 'none'" in policy
    browser.send(**{FIELD: "guessed"})
    assert (browser.status, "Solve the captcha at the end of the form" in browser.words) == (
        400,
        True,
    )
    browser.send(**{FIELD: "solved"})
    assert "Thank you, the operation is confirmed" in browser.words
    assert "recaptcha" not in browser.answer.headers["content-security-policy"]
    body = {"username": "bob", "password": "builder", "auth": {"session": session}}
    assert guarded.post(REGISTER, body).status == 200


def test_the_fallback_page_is_for_registration_alone(
    guarded: TestServer, server: TestServer
) -> None:
    assert (
        Browser(guarded)
        .open(f"/_matrix/client/v3/auth/{STAGE}/fallback/web?session=unknown")
        .status
        == 400
    )
    session = server.post(REGISTER, {"username": "bob", "password": "builder"}).json["session"]
    assert (
        Browser(server)
        .open(f"/_matrix/client/v3/auth/{STAGE}/fallback/web?session={session}")
        .status
        == 400
    )


def test_the_page_to_register(guarded: TestServer, riddler: Riddler) -> None:
    browser = Browser(guarded)
    browser.open(PAGE)
    assert (
        "frame-src https://www.recaptcha.net/" in browser.answer.headers["content-security-policy"]
    )
    chosen = {"name": "bob", "password": "builder", "password_again": "builder"}
    browser.send(**{**chosen, "password_again": "other", FIELD: "solved"})
    assert riddler.asked == []  # what can be seen without it is said first
    browser.send(**chosen)
    assert "Solve the captcha at the end of the form" in browser.words
    riddler.answer = 500
    browser.send(**chosen, **{FIELD: "solved"})
    assert (browser.status, "captcha cannot be checked" in browser.words) == (503, True)
    riddler.answer = None
    browser.send(**chosen, **{FIELD: "solved"})
    assert browser.path == "/_mahalla/account"
    assert "recaptcha" not in browser.answer.headers["content-security-policy"]


@pytest.mark.parametrize("later", ["captcha", "name", "limit"])
def test_a_token_for_one_account_is_good_until_there_is_one(
    tmp_path: Path, sqlite_database: Database, riddler: Riddler, later: str
) -> None:
    rules = (
        "registration_requires_token: true\nrc_registration: {per_second: 0.01, burst_count: 2}\n"
    )
    server = TestServer(tmp_path, sqlite_database, CONFIG + RIDDLES + rules, web=riddler)
    riddler.right |= {"solved too"}
    other, token = (
        server.run(server.app.accounts.registration.do_make_token(uses_allowed=1, seconds=None))
        for _ in range(2)
    )
    register_on_page(Browser(server), other, "carol", "solved too")
    browser = Browser(server)
    match later:
        case "captcha":
            register_on_page(browser, token, "bob", "guessed")
        case "name":
            register_on_page(browser, token, "bob", "guessed")
            register_on_page(browser, token, "carol", "solved")
        case "limit":
            register_on_page(browser, token, "bob", "solved")
    server.clock.advance(600)
    assert browser.status != 200
    register_on_page(
        browser, token, "bob", "solved" if later == "captcha" else ""
    )  # what is solved stays so
    assert browser.path == "/_mahalla/account", browser.words
    last = Browser(server)
    server.clock.advance(600)
    register_on_page(last, token, "dave", "solved")
    assert "This registration token is not valid" in last.words


def register_on_page(browser: Browser, token: str, name: str, solution: str) -> None:
    """From where the browser is, or else from the beginning."""
    if not browser.path.startswith(PAGE):
        browser.open(PAGE)
    fields = {
        "name": name,
        "password": "builder",
        "password_again": "builder",
        "registration_token": token,
    }
    browser.send(PAGE, **fields, **{FIELD: solution})


def test_other_pages_load_nothing_foreign(guarded: TestServer) -> None:
    for path in ("/_mahalla/sign_in", "/"):
        assert "recaptcha" not in Browser(guarded).open(path).headers["content-security-policy"]


def test_other_makers_of_riddles(tmp_path: Path, sqlite_database: Database) -> None:
    other = """recaptcha_script: "https://challenges.example/api.js?compat=recaptcha"
recaptcha_sources: [https://challenges.example]
"""
    browser = Browser(TestServer(tmp_path, sqlite_database, CONFIG + RIDDLES + other))
    browser.open(PAGE)
    policy = browser.answer.headers["content-security-policy"]
    assert "script-src https://challenges.example/api.js https://challenges.example;" in policy
    assert 'src="https://challenges.example/api.js?compat=recaptcha"' in browser.text
    assert "recaptcha.net" not in policy
