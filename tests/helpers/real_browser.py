"""A user with a real browser (Debian's Chromium), and the mail server that receives their e-mails.

axe checks each page for accessibility. With the environment variable `MAHALLA_SCREENSHOTS`, a
folder gets a screenshot of each page.
"""

import os
import re
import time
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any

from aiosmtpd.smtp import Envelope
from playwright.sync_api import Browser, Page

from tests.helpers.real_server import RealServer

AXE = Path(__file__).parents[2] / ".cache" / "js" / "node_modules" / "axe-core" / "axe.min.js"
APP = "https://app.example.com/"
SECONDS = 60


class EmailLinks:
    """A handler of a mail server that stores the links of e-mails."""

    def __init__(self) -> None:
        self.links: list[str] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Envelope) -> str:
        email = message_from_bytes(envelope.original_content or b"", policy=default)
        assert isinstance(email, EmailMessage)
        text = email.get_body(("plain",))
        assert text is not None
        self.links += re.findall(r"http://127\.0\.0\.1:\S+", text.get_content())
        return "250 taken"


class BrowserUser:
    """A user with a browser in a given language."""

    def __init__(self, browser: Browser, server: RealServer, locale: str, **options: Any) -> None:
        self.url = server.url
        self.locale = locale
        self._context = browser.new_context(locale=locale, **options)
        self.page = self._new_page()
        self._screenshots = 0

    def _new_page(self) -> Page:
        page = self._context.new_page()
        page.set_default_timeout(SECONDS * 1000)
        page.on("console", self._on_console)
        return page

    def _on_console(self, message: Any) -> None:
        assert "Content Security Policy" not in message.text, message.text

    def open(self, path: str) -> None:
        self.page.goto(path if "://" in path else self.url + path)

    def check_page(self) -> None:
        """Check the page with axe, and save a screenshot if wanted."""
        folder = os.environ.get("MAHALLA_SCREENSHOTS")
        if folder:
            self._screenshots += 1
            self.page.screenshot(
                path=f"{folder}/{self.locale}-{self._screenshots:02}.png", full_page=True
            )
        self.page.evaluate(AXE.read_text(encoding="utf-8"))
        found = self.page.evaluate("axe.run()")
        faults = [
            (fault["id"], fault["help"], [node["html"] for node in fault["nodes"]])
            for fault in found["violations"]
            if fault["impact"] in ("serious", "critical")
        ]
        assert faults == [], f"{self.page.url}: {faults}"

    def fill(self, button: str = "form.fields button", **fields: str) -> None:
        """Check the page, fill in a form, and submit it with the keyboard."""
        self.check_page()
        for name, value in fields.items():
            self.page.fill(f"form.fields [name={name}]:not([type=hidden])", value)
        self.page.focus(button)
        with self.page.expect_navigation():
            self.page.keyboard.press("Enter")

    def decide(self, decision: str) -> None:
        self.check_page()
        self.press(f"button[value={decision}]")

    def go_back_to_app(self) -> str:
        """Allow the app's request; return the URL of the redirect to the app. Opens a new page,
        since the app does not exist and its error page would still be loading."""
        self.check_page()
        with self.page.expect_request(f"{APP}**") as asked:
            self.page.click("button[value=allow]")
        sent = asked.value.redirected_from
        response = None if sent is None else sent.response()
        assert response is not None
        location: str = response.headers["location"]
        self.page.close()
        self.page = self._new_page()
        return location

    def wait_for_emails(self, emails: EmailLinks, number: int) -> None:
        """Wait until `number` links have arrived by e-mail."""
        deadline = time.monotonic() + SECONDS
        while len(emails.links) < number:
            assert time.monotonic() < deadline, f"e-mail {number} did not arrive"
            self.page.wait_for_timeout(100)

    def press(self, what: str) -> None:
        """Click a button or a link, and wait for the navigation."""
        with self.page.expect_navigation():
            self.page.click(what)


def confirm_address(visitor: BrowserUser, emails: EmailLinks, number: int) -> None:
    """Open the link of an e-mail, press its button, and continue from there."""
    visitor.wait_for_emails(emails, number)
    visitor.open(emails.links[number - 1])
    visitor.check_page()
    visitor.press("form button")
    visitor.press("a.button")
