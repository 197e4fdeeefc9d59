"""An in-memory browser: keeps cookies, follows redirects of the server, fills in the forms of the
current page.

browser = Browser(server)
browser.open("/_mahalla/sign_in")
browser.send(name="alice", password="wonderland")
assert "Alice" in browser.text
"""

from collections.abc import Mapping
from html.parser import HTMLParser
from urllib.parse import urlencode, urljoin, urlsplit

from tests.helpers.http import Answer
from tests.helpers.server import TestServer

MOST_REDIRECTS = 10


class Form:
    """A form of a page."""

    def __init__(self, action: str, method: str) -> None:
        self.action = action
        self.method = method
        self.fields: dict[str, str] = {}
        self.buttons: list[tuple[str, str]] = []


class Page(HTMLParser):
    """A parsed HTML page: its forms, links and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self.links: dict[str, str] = {}
        self._link: str | None = None
        self._words: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.forms.append(Form(given.get("action", ""), given.get("method", "get").upper()))
        elif tag == "input" and self.forms and "name" in given:
            if given.get("type") not in ("checkbox", "radio") or "checked" in given:
                self.forms[-1].fields[given["name"]] = given.get("value", "")
        elif tag == "button" and self.forms and "name" in given:
            self.forms[-1].buttons.append((given["name"], given.get("value", "")))
        elif tag == "a":
            self._link, self._words = given.get("href"), []

    def handle_endtag(self, tag: str) -> None:
        if tag == "a" and self._link is not None:
            self.links[" ".join(" ".join(self._words).split())] = self._link
            self._link = None

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        self._words.append(data)


class Browser:
    """One browser, with its cookies."""

    def __init__(self, server: TestServer, languages: str = "en", ip: str = "127.0.0.1") -> None:
        self.server = server
        self.languages = languages
        self.ip = ip
        self.cookies: dict[str, str] = {}
        self.set_cookies: list[str] = []
        """All `Set-Cookie` headers that were received."""
        self.visited: list[str] = []
        """All requested paths, in order."""
        self.answer = Answer(0, {}, b"")
        self.path = ""

    @property
    def text(self) -> str:
        return self.answer.body.decode()

    @property
    def status(self) -> int:
        return self.answer.status

    @property
    def page(self) -> Page:
        return Page(self.text)

    @property
    def words(self) -> str:
        """Return the text of the page, without tags."""
        return " ".join(" ".join(self.page.words).split())

    @property
    def location(self) -> str:
        """The URL of a redirect that leaves the server."""
        return self.answer.headers["location"]

    def open(self, path: str) -> Answer:
        """Open a path of the server."""
        return self._go("GET", path)

    def follow(self, link: str) -> Answer:
        """Follow the link with this text."""
        return self._go("GET", urljoin(self.path, self.page.links[link]))

    def send(
        self, action: str | None = None, /, *, button: str | None = None, **fields: str
    ) -> Answer:
        """Fill in and submit the only form of the page, or the form with this action, with the
        button of this value."""
        form = next(form for form in self.page.forms if action is None or form.action == action)
        filled = {**form.fields, **fields}
        if button is not None:
            filled.update({name: value for name, value in form.buttons if value == button})
        return self.post(form.action, filled)

    def post(self, path: str, fields: Mapping[str, str]) -> Answer:
        """Post form fields to a path, whatever the current page is."""
        return self._go("POST", path, urlencode(fields).encode())

    def post_from_other_site(self, path: str, fields: Mapping[str, str]) -> Answer:
        """Post a form as a page of another site does: without cookies. Redirects are not
        followed."""
        cookies, self.cookies = self.cookies, {}
        self.request("POST", path, urlencode(fields).encode())
        self.cookies |= cookies
        return self.answer

    def _go(self, method: str, path: str, body: bytes | None = None) -> Answer:
        for _ in range(MOST_REDIRECTS):
            self.path = path
            self.visited.append(path)
            self.request(method, path, body)
            target = self.answer.headers.get("location", "")
            if self.answer.status != 303 or urlsplit(target).netloc or not target.startswith("/"):
                return self.answer
            method, path, body = "GET", target, None
        raise AssertionError(f"too many redirects: {path}")

    def request(self, method: str, path: str, body: bytes | None) -> None:
        headers = {
            "Accept": "text/html,application/xhtml+xml,*/*;q=0.8",
            "Accept-Language": self.languages,
        }
        if self.cookies:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        if body is not None:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        pending = self.server.client.start(method, path, body=body, headers=headers, ip=self.ip)
        self.answer = pending.answer
        head = pending.connection.received().partition(b"\r\n\r\n")[0].decode("latin-1")
        for line in head.split("\r\n")[1:]:
            name, _, value = line.partition(": ")
            if name.lower() == "set-cookie":
                self.set_cookies.append(value)
                key, _, rest = value.partition("=")
                self.cookies[key] = rest.partition(";")[0]
                if "; Max-Age=0" in value:
                    del self.cookies[key]


def press(browser: Browser, action: str, **fields: str) -> None:
    """Submit the form of the page whose button has this action."""
    form = next(form for form in browser.page.forms if form.fields.get("do") == action)
    browser.post(form.action, {**form.fields, **fields})
