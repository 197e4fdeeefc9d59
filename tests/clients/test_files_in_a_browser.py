"""Files in a real browser: images that a page uploads and shows, plain and encrypted, and files
that could harm the user.

The page has another origin than the server, like a web client. See `js/files_in_a_browser.js`.
"""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import Browser, Page
from playwright.sync_api import Error as BrowserError

from storage.engine.database import SQLiteConfig
from tests.helpers.images import picture
from tests.helpers.real_server import RealServer, running_server

SCRIPT = Path(__file__).parent / "js" / "files_in_a_browser.js"
PAGE = (
    b"<!doctype html><title>A client</title><input type=file id=file><img id=image>"
    b"<img id=thumbnail><script src=files_in_a_browser.js></script>"
)
RUNS = "<script>document.title = 'it runs'</script>"
PUBLIC = "/_matrix/media/v3/download"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """Run a server with unauthenticated media, so that files can be opened as pages too."""
    folder = tmp_path_factory.mktemp("server")
    open_to_all = {"enable_authenticated_media": False}
    with running_server(
        folder, SQLiteConfig(str(folder / "homeserver.db")), configuration=open_to_all
    ) as server:
        yield server


@pytest.fixture(scope="module")
def token(served: RealServer) -> str:
    body = {"username": "alice", "password": "wonderland", "auth": {"type": "m.login.dummy"}}
    return str(
        _post(served, "/_matrix/client/v3/register", json.dumps(body).encode(), {})["access_token"]
    )


class _Client(BaseHTTPRequestHandler):
    """Serves the page and its script."""

    def do_GET(self) -> None:
        is_script = self.path.endswith(".js")
        body = SCRIPT.read_bytes() if is_script else PAGE
        self.send_response(200)
        self.send_header("Content-Type", "text/javascript" if is_script else "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def client() -> Iterator[str]:
    """Serve the page on loopback, since the browser does not let remote pages request local
    servers. Yields its URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Client) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def page(client: str, chromium: Browser) -> Iterator[Page]:
    context = chromium.new_context()
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(client)
    yield page
    context.close()


def _post(served: RealServer, path: str, body: bytes, headers: dict[str, str]) -> dict[str, Any]:
    with urlopen(Request(served.url + path, body, headers, method="POST"), timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def _upload(served: RealServer, token: str, body: str, type: str) -> str:
    """Upload a file; return its public URL."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": type}
    uri = str(_post(served, "/_matrix/media/v3/upload", body.encode(), headers)["content_uri"])
    return f"{served.url}{PUBLIC}/{uri.removeprefix('mxc://')}"


def test_images_are_uploaded_and_shown(served: RealServer, token: str, page: Page) -> None:
    page.set_input_files(
        "#file", {"name": "choy.png", "mimeType": "image/png", "buffer": picture(800, 600)}
    )
    arguments = f"{json.dumps(served.url)}, {json.dumps(token)}"
    plain = page.evaluate(f"uploadAndShow({arguments})")
    assert (plain["imageSize"], plain["thumbnailSize"]) == ([800, 600], [96, 96])
    encrypted = page.evaluate(f"uploadEncryptedAndShow({arguments})")
    assert encrypted["imageSize"] == [800, 600]
    assert encrypted["hashes"][0] == encrypted["hashes"][1]
    assert encrypted["mediaPath"] != plain["mediaPath"]


@pytest.mark.parametrize(
    "type", ["text/html", "image/svg+xml", "application/xhtml+xml", "text/xml", "application/pdf"]
)
def test_active_content_is_not_opened(
    served: RealServer, token: str, page: Page, type: str
) -> None:
    with (
        page.expect_download() as download,
        pytest.raises(BrowserError, match="Download is starting"),
    ):
        page.goto(
            _upload(served, token, f"<svg xmlns='http://www.w3.org/2000/svg'>{RUNS}</svg>", type)
        )
    assert download.value.url.startswith(served.url)
    assert page.title() != "it runs"


def test_html_declared_as_text_or_image_does_not_run(
    served: RealServer, token: str, page: Page
) -> None:
    for type in ("text/plain", "image/png", "video/mp4"):
        with page.expect_download(), pytest.raises(BrowserError, match="Download is starting"):
            page.goto(_upload(served, token, f"<!doctype html>{RUNS}", type))
    page.goto(_upload(served, token, f"harmless {RUNS}", "text/plain"))
    assert page.title() != "it runs"
    assert RUNS in page.inner_text("body")


def test_no_other_page_can_run_a_file_as_a_script(
    served: RealServer, token: str, page: Page
) -> None:
    script = "document.title = 'it runs'"
    for type in ("text/plain", "application/json", "image/png", "application/octet-stream"):
        url = _upload(served, token, script, type)
        assert page.evaluate(f"embed('script', {json.dumps(url)})") == "refused", type
    assert page.title() == "A client"
    url = _upload(served, token, "body { color: red }", "text/plain")
    assert page.evaluate(f"embed('link', {json.dumps(url)})") == "refused"
