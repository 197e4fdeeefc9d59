"""Captchas at registration: in the API, on the fallback page, and on the registration page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from federation.http_client.client import WebResponse
from federation.http_client.errors import OutboundError
from storage.engine.database import Database
from tests.helpers.browser import Browser
from tests.helpers.http import Answer
from tests.helpers.oauth import CONFIG
from tests.helpers.server import TestServer

REGISTER = "/_matrix/client/v3/register"
PAGE = "/_mahalla/register"
STAGE = "m.login.recaptcha"
CAPTCHA = """
enable_registration_captcha: true
recaptcha_public_key: site-key
recaptcha_private_key: our-secret
"""
FIELD = "g-recaptcha-response"
WIDGET_SOURCES = "https://www.recaptcha.net/recaptcha/ https://www.gstatic.com/recaptcha/"


class CaptchaService:
    """A captcha service that accepts each right solution once.

    `answer`: returned or raised instead.
    """

    def __init__(self) -> None:
        self.right = {"solved"}
        self.answer: bytes | int | OutboundError | None = None
        self.requests: list[dict[str, list[str]]] = []

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
    ) -> WebResponse:
        assert (method, url, only_https, redirects) == (
            "POST",
            "https://www.recaptcha.net/recaptcha/api/siteverify",
            True,
            0,
        )
        form = parse_qs(body.decode())
        self.requests.append(form)
        if isinstance(self.answer, OutboundError):
            raise self.answer
        if isinstance(self.answer, int):
            return WebResponse(url, self.answer, {}, b"")
        if self.answer is not None:
            return WebResponse(url, 200, {}, self.answer)
        [solution] = form["response"]
        if solution in self.right:
            self.right.remove(solution)
            return WebResponse(url, 200, {}, b'{"success": true, "hostname": "example.org"}')
        return WebResponse(
            url, 200, {}, b'{"success": false, "error-codes": ["invalid-input-response"]}'
        )


@pytest.fixture
def service() -> CaptchaService:
    return CaptchaService()


@pytest.fixture
def guarded(tmp_path: Path, sqlite_database: Database, service: CaptchaService) -> TestServer:
    return TestServer(tmp_path, sqlite_database, CONFIG + CAPTCHA, web=service)


def solve(server: TestServer, response: object, **auth: str) -> Answer:
    body = {"username": "bob", "password": "builder"}
    return server.post(REGISTER, {**body, "auth": {"type": STAGE, "response": response, **auth}})


def test_a_solved_captcha_completes_the_stage(guarded: TestServer, service: CaptchaService) -> None:
    challenge = guarded.post(REGISTER, {"username": "bob", "password": "builder"}).json
    assert challenge["flows"] == [{"stages": [STAGE]}]
    assert challenge["params"] == {STAGE: {"public_key": "site-key"}}
    wrong = solve(guarded, "guessed", session=challenge["session"])
    assert (wrong.status, wrong.errcode) == (401, "M_CAPTCHA_INVALID")
    assert (
        solve(guarded, "solved", session=challenge["session"]).json["user_id"] == "@bob:example.org"
    )
    assert service.requests[-1] == {"secret": ["our-secret"], "response": ["solved"]}


@pytest.mark.parametrize("response", [None, "", 7, ["solved"]])
def test_without_a_solution_the_service_is_not_asked(
    guarded: TestServer, service: CaptchaService, response: object
) -> None:
    answer = solve(guarded, response)
    assert (answer.status, answer.errcode, service.requests) == (401, "M_CAPTCHA_NEEDED", [])


@pytest.mark.parametrize("response", ["x" * 12_001, "s\u00f6lved"])
def test_malformed_solutions_are_not_sent_to_the_service(
    guarded: TestServer, service: CaptchaService, response: str
) -> None:
    answer = solve(guarded, response)
    assert (answer.status, answer.errcode, service.requests) == (401, "M_CAPTCHA_INVALID", [])


@pytest.mark.parametrize(
    "answer",
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
def test_a_solution_is_refused_while_the_service_cannot_confirm_it(
    guarded: TestServer, service: CaptchaService, answer: Any
) -> None:
    service.answer = answer
    refused = solve(guarded, "solved")
    assert (refused.status, refused.errcode) == (401, "M_UNKNOWN")
    assert "cannot be checked at the moment" in refused.json["error"]
    service.answer = None
    assert solve(guarded, "solved", session=refused.json["session"]).status == 200


def test_the_captcha_follows_the_registration_token(
    tmp_path: Path, sqlite_database: Database, service: CaptchaService
) -> None:
    rules = "registration_requires_token: true\n"
    server = TestServer(tmp_path, sqlite_database, CONFIG + CAPTCHA + rules, web=service)
    challenge = server.post(REGISTER, {"username": "bob", "password": "builder"}).json
    assert challenge["flows"] == [{"stages": ["m.login.registration_token", STAGE]}]
    assert (
        solve(server, "solved", session=challenge["session"]).status == 401
    )  # the token comes first, and the solution stays unused
    assert service.requests == []


def test_the_fallback_page_completes_the_stage(guarded: TestServer) -> None:
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


def test_the_fallback_page_refuses_other_sessions(guarded: TestServer, server: TestServer) -> None:
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


def test_the_registration_page_has_a_captcha(guarded: TestServer, service: CaptchaService) -> None:
    browser = Browser(guarded)
    browser.open(PAGE)
    assert (
        "frame-src https://www.recaptcha.net/" in browser.answer.headers["content-security-policy"]
    )
    chosen = {"name": "bob", "password": "builder", "password_again": "builder"}
    browser.send(**{**chosen, "password_again": "other", FIELD: "solved"})
    assert service.requests == []  # other errors are reported first
    browser.send(**chosen)
    assert "Solve the captcha at the end of the form" in browser.words
    service.answer = 500
    browser.send(**chosen, **{FIELD: "solved"})
    assert (browser.status, "captcha cannot be checked" in browser.words) == (503, True)
    service.answer = None
    browser.send(**chosen, **{FIELD: "solved"})
    assert browser.path == "/_mahalla/account"
    assert "recaptcha" not in browser.answer.headers["content-security-policy"]


@pytest.mark.parametrize("later", ["captcha", "name", "limit"])
def test_a_failed_registration_keeps_the_use_of_its_token(
    tmp_path: Path, sqlite_database: Database, service: CaptchaService, later: str
) -> None:
    rules = (
        "registration_requires_token: true\nrc_registration: {per_second: 0.01, burst_count: 2}\n"
    )
    server = TestServer(tmp_path, sqlite_database, CONFIG + CAPTCHA + rules, web=service)
    service.right |= {"solved too"}
    other, token = (
        server.run(server.app.login.registration.do_create_token(uses_allowed=1, seconds=None))
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
    )  # a solved captcha stays completed
    assert browser.path == "/_mahalla/account", browser.words
    last = Browser(server)
    server.clock.advance(600)
    register_on_page(last, token, "dave", "solved")
    assert "This registration token is not valid" in last.words


def register_on_page(browser: Browser, token: str, name: str, solution: str) -> None:
    """Register on the current page, or from the start."""
    if not browser.path.startswith(PAGE):
        browser.open(PAGE)
    fields = {
        "name": name,
        "password": "builder",
        "password_again": "builder",
        "registration_token": token,
    }
    browser.send(PAGE, **fields, **{FIELD: solution})


def test_other_pages_load_no_third_party_scripts(guarded: TestServer) -> None:
    for path in ("/_mahalla/sign_in", "/"):
        assert "recaptcha" not in Browser(guarded).open(path).headers["content-security-policy"]


def test_another_captcha_service_can_be_configured(
    tmp_path: Path, sqlite_database: Database
) -> None:
    other = """recaptcha_script: "https://challenges.example/api.js?compat=recaptcha"
recaptcha_sources: [https://challenges.example]
"""
    browser = Browser(TestServer(tmp_path, sqlite_database, CONFIG + CAPTCHA + other))
    browser.open(PAGE)
    policy = browser.answer.headers["content-security-policy"]
    assert "script-src https://challenges.example/api.js https://challenges.example;" in policy
    assert 'src="https://challenges.example/api.js?compat=recaptcha"' in browser.text
    assert "recaptcha.net" not in policy
