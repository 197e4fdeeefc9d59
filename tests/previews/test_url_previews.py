"""URL previews, through the complete server and real worker processes."""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from homeserver.services.previews.fetching import MAX_PAGE_BYTES
from homeserver.services.previews.page_worker import TEXT_CHARS, decode, parse_page
from homeserver.services.previews.url_previews import CONCURRENT_PER_USER, FAILED_MS
from storage.engine.database import Database
from tests.helpers.executors import ManualExecutor
from tests.helpers.http import Answer
from tests.helpers.images import claimed_png, picture
from tests.helpers.media_files import stored_contents, upload_file
from tests.helpers.preview_sites import LinkedPages
from tests.helpers.server import TestServer, User

NEW = "/_matrix/client/v1/media/preview_url"
PAGE = "https://site.example/story"
ON = "url_preview_enabled: true\n"
DAY = 24 * 3600


@pytest.fixture
def pages() -> LinkedPages:
    return LinkedPages()


@pytest.fixture
def alice(sqlite_database: Database, tmp_path: Path, pages: LinkedPages) -> Iterator[User]:
    server = TestServer(tmp_path, sqlite_database, ON, preview_web=pages)
    yield server.register("alice")
    server.app.media.close_workers()


def _ask(user: User, url: str = PAGE, path: str = NEW) -> Answer:
    return user.get(f"{path}?url={quote(url, safe='')}")


def _server(
    tmp_path: Path, database: Database, pages: LinkedPages, further: str = "", **options: Any
) -> User:
    return TestServer(tmp_path, database, ON + further, preview_web=pages, **options).register(
        "alice"
    )


@pytest.mark.parametrize(
    "path", [NEW, "/_matrix/media/v3/preview_url", "/_matrix/media/r0/preview_url"]
)
def test_open_graph_metadata_are_returned(alice: User, pages: LinkedPages, path: str) -> None:
    pages.put(
        PAGE,
        '<title>Not this</title><meta property="og:title" content="Plov &amp; tea"><meta'
        ' name="og:site_name" content="Site">'
        '<meta property="og:description" content=" two\n lines "><meta property="og:image"'
        ' content="/plov.png">'
        '<meta property="og:image:width" content="5"><meta property="og:title" content="nor this">',
    )
    pages.put("https://site.example/plov.png", picture(300, 200), "image/png")
    answer = _ask(alice, path=path)
    assert answer.status == 200
    said = answer.json
    address = said.pop("og:image")
    assert said == {
        "og:title": "Plov & tea",
        "og:site_name": "Site",
        "og:description": "two lines",
        "og:image:type": "image/png",
        "og:image:width": 300,
        "og:image:height": 200,
        "matrix:image:size": len(picture(300, 200)),
    }
    got = alice.get("/_matrix/client/v1/media/download/" + address.removeprefix("mxc://"))
    assert (got.status, got.body) == (200, picture(300, 200))
    thumbnail = alice.get(
        f"/_matrix/client/v1/media/thumbnail/{address.removeprefix('mxc://')}?width=96&height=96"
    )
    assert thumbnail.status == 200


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_preview_omits_an_image_that_cannot_be_stored(
    alice: User, pages: LinkedPages, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    pages.put(PAGE, '<title>Plov</title><meta property="og:image" content="/plov.png">')
    pages.put("https://site.example/plov.png", picture(300, 200), "image/png")

    def broken(*_: object) -> None:
        raise OSError(number, "no")

    with monkeypatch.context() as patching:
        patching.setattr(os, "fsync", broken)
        for url, title in ((PAGE, "Plov"), ("https://site.example/plov.png", "plov.png")):
            answer = _ask(alice, url)
            assert (answer.status, answer.json) == (200, {"og:title": title})
    alice.server.clock.advance(FAILED_MS / 1000 + 1)
    for url in (PAGE, "https://site.example/plov.png"):
        assert _ask(alice, url).json["og:image:width"] == 300


def test_a_quarantined_image_does_not_come_back_with_a_preview(
    alice: User, pages: LinkedPages
) -> None:
    root = alice.server.register("root")
    alice.server.run(alice.server.app.user_data.accounts.do_set_flags(root.user_id, is_admin=True))
    pages.put(
        PAGE, '<meta property="og:title" content="A"><meta property="og:image" content="/a.png">'
    )
    pages.put("https://site.example/a.png", picture(30, 20), "image/png")
    address = upload_file(alice, picture(30, 20))
    assert root.post(f"/_synapse/admin/v1/media/quarantine/{address}").status == 200
    assert _ask(alice).json == {"og:title": "A"}


def test_requests_name_the_user_agent_and_languages(
    sqlite_database: Database, tmp_path: Path, pages: LinkedPages
) -> None:
    alice = _server(
        tmp_path, sqlite_database, pages, 'url_preview_accept_language: ["uz", "ru;q=0.5"]\n'
    )
    pages.put(PAGE, "<title>x</title>")
    assert _ask(alice).status == 200
    headers = pages.asked[0][1]
    assert headers["Accept-Language"] == "uz, ru;q=0.5"
    assert headers["User-Agent"] == "Mahalla (bot; +https://example.org/)"
    assert not {"Cookie", "Referer", "Authorization"} & set(headers)


def test_without_open_graph_the_title_and_first_words_are_returned(
    alice: User, pages: LinkedPages
) -> None:
    pages.put(
        PAGE,
        "<html><head><title>A\u00a0title</title><style>x</style></head><body><nav>Menu</nav><script>evil()</script>"
        f"<h1>Head</h1><p>First"
        f" <b>words</b>.</p><p>{'more ' * 200}</p><footer>Foot</footer></body>",
    )
    said = _ask(alice).json
    assert said["og:title"] == "A title"
    assert said["og:description"].startswith("Head First words . more more")
    assert said["og:description"].endswith("more…")
    assert len(said["og:description"]) <= TEXT_CHARS + 1


def test_other_metadata_of_a_page_are_returned(alice: User, pages: LinkedPages) -> None:
    pages.put(
        PAGE,
        '<base href="https://other.example/dir/"><meta name="twitter:title" content="T"><meta'
        ' name="description" content="D">'
        '<link rel="apple-touch-icon" href="icon.png">',
    )
    pages.put("https://other.example/dir/icon.png", picture(64, 64), "image/png")
    said = _ask(alice).json
    assert (said["og:title"], said["og:description"], said["og:image:width"]) == ("T", "D", 64)


def test_an_oembed_document_completes_the_metadata(alice: User, pages: LinkedPages) -> None:
    pages.put(
        PAGE,
        '<meta property="og:title" content="Mine"><link rel="alternate"'
        ' type="application/json+oembed" href="/oembed?x=1">',
    )
    document = {
        "type": "video",
        "title": "Theirs",
        "provider_name": "Tube",
        "author_name": "Somebody",
        "thumbnail_url": "https://cdn.example/t.png",
        "html": "<script>",
    }
    pages.put("https://site.example/oembed?x=1", json.dumps(document), "application/json")
    pages.put("https://cdn.example/t.png", picture(100, 50), "image/png")
    said = _ask(alice).json
    assert (said["og:title"], said["og:site_name"], said["og:description"]) == (
        "Mine",
        "Tube",
        "Somebody",
    )
    assert said["og:image:width"] == 100
    assert "<script>" not in str(said)


@pytest.mark.parametrize(
    "document", ["", "[]", "null", '{"title": 5, "thumbnail_url": {}}', "[" * 100_000]
)
def test_a_broken_oembed_document_is_ignored(
    alice: User, pages: LinkedPages, document: str
) -> None:
    pages.put(PAGE, '<title>Mine</title><link type="application/json+oembed" href="/oembed">')
    pages.put("https://site.example/oembed", document, "application/json")
    assert _ask(alice).json == {"og:title": "Mine"}


def test_a_linked_image_and_another_file_have_previews(alice: User, pages: LinkedPages) -> None:
    pages.put("https://site.example/a.png", picture(40, 30), "image/png")
    said = _ask(alice, "https://site.example/a.png").json
    assert (said["og:image:width"], said["og:title"]) == (40, "a.png")
    pages.put("https://site.example/the%20plan.pdf", b"%PDF" * 10, "application/pdf")
    assert _ask(alice, "https://site.example/the plan.pdf").json == {"og:title": "the plan.pdf"}


@pytest.mark.parametrize(
    "body",
    [b"no picture", claimed_png(60_000, 60_000), b"<svg xmlns='http://www.w3.org/2000/svg'/>", b""],
)
def test_an_invalid_image_is_not_stored(
    alice: User, pages: LinkedPages, tmp_path: Path, body: bytes
) -> None:
    pages.put(PAGE, '<title>x</title><meta property="og:image" content="https://cdn.example/i">')
    pages.put("https://cdn.example/i", body, "image/png")
    assert _ask(alice).json == {"og:title": "x"}
    assert stored_contents(tmp_path) == []


def test_a_large_image_is_left_out(
    sqlite_database: Database, tmp_path: Path, pages: LinkedPages
) -> None:
    alice = _server(tmp_path, sqlite_database, pages, "max_spider_size: 10000\n")
    pages.put(PAGE, '<title>x</title><meta property="og:image" content="https://cdn.example/i">')
    pages.put("https://cdn.example/i", b"\x89PNG" * 10_000, "image/png")
    assert _ask(alice).json == {"og:title": "x"}
    assert not list((tmp_path / "media_store" / "incoming").iterdir())
    alice.server.app.media.close_workers()


def test_a_page_is_fetched_once_while_its_preview_is_cached(
    alice: User, pages: LinkedPages
) -> None:
    bob = alice.server.register("bob")
    pages.put(PAGE, "<title>One</title>")
    assert _ask(alice).json == _ask(bob, PAGE + "#part").json == {"og:title": "One"}
    assert len(pages.asked) == 1
    pages.put(PAGE, "<title>Two</title>")
    alice.server.clock.advance(3601)
    assert _ask(bob).json == {"og:title": "Two"}


def test_a_page_that_cannot_be_fetched_is_not_retried_at_once(
    alice: User, pages: LinkedPages
) -> None:
    for _ in range(2):
        answer = _ask(alice)
        assert (answer.status, answer.errcode) == (502, "M_UNKNOWN")
    assert len(pages.asked) == 1
    pages.put(PAGE, "<title>x</title>")
    alice.server.clock.advance(301)
    assert _ask(alice).status == 200
    pages.pages["https://site.example/gone"] = (
        404,
        {"content-type": "text/html"},
        b"<title>no</title>",
    )
    assert _ask(alice, "https://site.example/gone").status == 502


def test_images_are_deleted_some_time_after_their_previews(
    alice: User, pages: LinkedPages, tmp_path: Path
) -> None:
    previews = alice.server.app.media.previews.previews
    pages.put(PAGE, '<meta property="og:image" content="/i.png">')
    pages.put("https://site.example/i.png", picture(40, 30), "image/png")
    first = _ask(alice).json["og:image"]
    alice.server.clock.advance(3601)
    assert _ask(alice).json["og:image"] == first  # the same image is the same file
    pages.put("https://site.example/i.png", picture(50, 30), "image/png")
    alice.server.clock.advance(3601)
    second = _ask(alice).json["og:image"]
    assert second != first
    assert len(stored_contents(tmp_path)) == 2
    assert alice.server.run(previews.do_remove_old(50)) == 0
    alice.server.clock.advance(2 * DAY - 3600)
    assert alice.server.run(previews.do_remove_old(50)) == 1
    assert len(stored_contents(tmp_path)) == 1
    assert (
        alice.get("/_matrix/client/v1/media/download/" + first.removeprefix("mxc://")).status == 404
    )
    alice.server.clock.advance(3 * DAY)
    assert alice.server.run(previews.do_remove_old(50)) == 1
    assert stored_contents(tmp_path) == []


def test_lists_apply_to_every_url_of_a_redirect(
    sqlite_database: Database, tmp_path: Path, pages: LinkedPages
) -> None:
    denied = (
        '[{hostname: "*.internal.example"}, {scheme: "http", netloc: "^[0-9.]+$"}, {path:'
        ' "/secret/*"}]'
    )
    alice = _server(tmp_path, sqlite_database, pages, f"url_preview_url_blacklist: {denied}\n")
    for url in (
        "https://a.internal.example/",
        "http://203.0.113.5/",
        "https://site.example/secret/x",
    ):
        assert (_ask(alice, url).status, _ask(alice, url).errcode) == (403, "M_FORBIDDEN")
    assert pages.asked == []
    pages.redirect(PAGE, "/on")
    pages.redirect("https://site.example/on", "https://b.internal.example/")
    pages.put("https://b.internal.example/", "<title>secret</title>")
    assert _ask(alice).status == 502
    assert [url for url, _ in pages.asked] == [PAGE, "https://site.example/on"]
    pages.put(
        "https://other.example/",
        '<title>x</title><meta property="og:image" content="https://c.internal.example/i">',
    )
    assert _ask(alice, "https://other.example/").json == {"og:title": "x"}
    assert "https://c.internal.example/i" not in [url for url, _ in pages.asked]


@pytest.mark.parametrize(
    ("url", "netloc"),
    [
        ("http://evil.example.", "evil.example"),
        ("http://evil.example:80/", "evil.example"),
        ("https://EVIL.example.:443/", "evil.example"),
        ("https://evil.example\u3002/", "evil.example"),
        ("https://evil.example..", "evil.example"),
        ("https://evil.example/", "evil.example:443"),
        ("http://evil.example:80/", "evil.example:80"),
    ],
)
def test_other_spellings_of_a_host_do_not_bypass_the_lists(
    sqlite_database: Database, tmp_path: Path, pages: LinkedPages, url: str, netloc: str
) -> None:
    denied = f"url_preview_url_blacklist: [{{netloc: '{netloc}'}}]\n"
    alice = _server(tmp_path, sqlite_database, pages, denied)
    assert _ask(alice, url).status == 403
    assert pages.asked == []


def test_only_allowed_urls_are_fetched(
    sqlite_database: Database, tmp_path: Path, pages: LinkedPages
) -> None:
    alice = _server(
        tmp_path,
        sqlite_database,
        pages,
        'url_preview_url_allowlist: [{hostname: "good.example"}]\n',
    )
    pages.put("https://good.example/", "<title>x</title>")
    assert _ask(alice, "https://good.example/").status == 200
    assert _ask(alice).status == 403


@pytest.mark.parametrize(
    "url",
    [
        "",
        "site.example",
        "ftp://site.example/",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "https://user:word@site.example/",
        "https:///x",
        "https://./x",
        "https://[::1/",
        "https://site.example:port/",
        "https://" + "x" * 3000,
        "https://\ud800.example/".encode("utf-8", "replace").decode(),
        "https://exa mple/\r\nHost: evil",
    ],
)
def test_invalid_urls_are_refused(alice: User, pages: LinkedPages, url: str) -> None:
    answer = _ask(alice, url)
    assert answer.status in (400, 502)
    assert answer.status == 400 or pages.asked == [] or "\r" not in pages.asked[0][0]


def test_international_domain_names_are_requested_in_ascii(alice: User, pages: LinkedPages) -> None:
    pages.put("https://xn--e1afmkfd.example/%D1%87%D0%BE%D0%B9?q=%20a", "<title>Чой</title>")
    assert _ask(alice, "https://пример.example/чой?q= a").json == {"og:title": "Чой"}


def test_ports_of_other_services_are_refused(alice: User, pages: LinkedPages) -> None:
    assert _ask(alice, "http://site.example:25/").status == 403
    assert pages.asked == []


def test_a_long_page_is_read_up_to_a_limit(alice: User, pages: LinkedPages) -> None:
    pages.put(PAGE, b"<title>Long</title>" + b"<p>word</p>" * (2 * MAX_PAGE_BYTES // 11))
    assert _ask(alice).json["og:title"] == "Long"


def test_endless_redirects_are_refused(alice: User, pages: LinkedPages) -> None:
    pages.redirect(PAGE, PAGE)
    assert _ask(alice).status == 502
    assert len(pages.asked) == 6


def test_previews_are_off_by_default_and_need_an_account(server: TestServer) -> None:
    alice = server.register("alice")
    assert _ask(alice).errcode == "M_FORBIDDEN"
    capability = "io.element.msc4452.preview_url"
    assert alice.get("/_matrix/client/v3/capabilities").json["capabilities"][capability] == {
        "enabled": False
    }
    assert server.get(f"{NEW}?url=https%3A%2F%2Fa.example").errcode == "M_MISSING_TOKEN"


def test_a_user_with_many_slow_previews_does_not_delay_others(
    alice: User, pages: LinkedPages
) -> None:
    bob = alice.server.register("bob")
    pages.slow = []
    urls = [f"https://slow.example/{number}" for number in range(8)]
    for url in (*urls, PAGE):
        pages.put(url, "<title>slow</title>")
    asked = [alice.start("GET", f"{NEW}?url={quote(url, safe='')}") for url in urls]
    assert len(pages.slow) == CONCURRENT_PER_USER
    late = bob.start("GET", f"{NEW}?url={quote(PAGE, safe='')}")
    pages.slow[-1].callback(None)
    assert late.answer.json == {"og:title": "slow"}
    for number in range(len(urls) + 1):
        if not pages.slow[number].called:
            pages.slow[number].callback(None)
    assert {each.answer.status for each in asked} == {200}


def test_slow_images_do_not_delay_previews_of_other_users(
    sqlite_database: Database, tmp_path: Path, pages: LinkedPages
) -> None:
    images = ManualExecutor()
    alice = _server(tmp_path, sqlite_database, pages, images=images)
    bob = alice.server.register("bob")
    for number, name in enumerate("abcd"):
        pages.put(f"https://slow.example/{name}.png", picture(30, 20 + number), "image/png")
        pages.put(
            f"https://slow.example/{name}", f'<meta property="og:image" content="/{name}.png">'
        )
    asked = [
        user.start("GET", f"{NEW}?url={quote(f'https://slow.example/{name}', safe='')}")
        for user, name in ((alice, "a"), (alice, "b"), (alice, "c"), (bob, "d"))
    ]
    assert len(images.jobs) == 2  # one of hers, and his
    images.jobs.pop()()
    assert [each.done for each in asked] == [False, False, False, True]
    images.run()
    assert [each.answer.json["og:image:width"] for each in asked] == [30] * 4
    alice.server.app.media.close_workers()


def test_concurrent_previews_of_one_user_are_limited(
    sqlite_database: Database, tmp_path: Path, pages: LinkedPages
) -> None:
    alice = _server(
        tmp_path, sqlite_database, pages, "rc_url_preview: {per_second: 0.1, burst_count: 2}\n"
    )
    pages.put(PAGE, "<title>x</title>")
    assert [_ask(alice).status for _ in range(3)] == [200, 200, 429]
    alice.server.app.media.close_workers()


# Parsing pages, without a process.


@pytest.mark.parametrize(
    ("page", "claimed", "text"),
    [
        ("чой".encode("cp1251"), "windows-1251", "чой"),
        ("чой".encode("koi8-r"), '"KOI8-R"', "чой"),
        ("чой".encode(), "", "чой"),
        ("чой".encode("utf-16"), "utf-8", "чой"),
        (
            b'<meta charset="windows-1251">' + "чой".encode("cp1251"),
            "",
            '<meta charset="windows-1251">чой',
        ),
        ("茶".encode("shift_jis"), "shift_jis", "茶"),
        (b"caf\xe9", "iso-8859-1", "café"),
        (b"caf\xe9", "", "café"),
        (b"\x93quoted\x94", "ISO-8859-1", "“quoted”"),
        (b"x", "zlib_codec", "x"),
        (b"x", "no such thing", "x"),
        (b"x", "rot13", "x"),
        ("чой".encode()[:-1], "", "чо�"),
    ],
)
def test_pages_are_decoded_by_their_charset(page: bytes, claimed: str, text: str) -> None:
    assert decode(page, claimed) == text


@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"\0\0\0",
        b"<" * 100_000,
        b"<div>" * 200_000,
        b"<meta property='og:x' content='" + b"y" * 500_000,
        b"<meta property=og:a content=b>" * 30_000,
        b"<!DOCTYPE x [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;'>]><title>&b;</title>",
        b"<!DOCTYPE x [<!ENTITY a SYSTEM 'file:///etc/passwd'>]><title>&a;</title>",
        bytes(range(256)) * 1000,
    ],
)
def test_hostile_pages_cause_no_500(page: bytes) -> None:
    found: dict[str, Any] = parse_page(page, "https://site.example/", "")
    assert len(json.dumps(found)) < 100_000
    assert "root:" not in json.dumps(found)


def test_bidirectional_control_characters_are_removed(alice: User, pages: LinkedPages) -> None:
    pages.put(PAGE, "<meta property='og:title' content='a\u202eb\u0007c&#8238;d'>")
    assert _ask(alice).json["og:title"] == "a b c d"
