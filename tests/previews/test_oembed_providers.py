"""Previews from oEmbed documents of the providers that the operator configured."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from homeserver.config.oembed_files import make_matcher
from storage.engine.database import Database
from tests.helpers.images import picture
from tests.helpers.preview_sites import LinkedPages
from tests.helpers.server import TestServer, User

PROVIDERS = [
    {
        "provider_name": "Tube",
        "provider_url": "https://tube.example",
        "endpoints": [
            {
                "schemes": ["https://*.tube.example/watch*", "http://tube.example/v?d=*"],
                "url": "https://tube.example/oembed",
            },
            {"schemes": ["tube:*"], "url": "https://tube.example/oembed"},
        ],
    },
    {
        "endpoints": [
            {
                "schemes": ["https://photos.example/*/*"],
                "url": "https://photos.example/api/oembed.{format}?a=1",
            }
        ]
    },
    {
        "endpoints": [
            {
                "schemes": ["https://xml.example/*"],
                "url": "https://xml.example/oembed",
                "formats": ["xml"],
            }
        ]
    },
    {"endpoints": [{"url": "https://discovered.example/oembed", "discovery": True}]},
]
TUBE, PHOTOS = "https://tube.example/oembed", "https://photos.example/api/oembed.json?a=1"


@pytest.fixture
def pages() -> LinkedPages:
    return LinkedPages()


@pytest.fixture
def alice(sqlite_database: Database, tmp_path: Path, pages: LinkedPages) -> Iterator[User]:
    (tmp_path / "providers.json").write_text(json.dumps(PROVIDERS))
    on = (
        f"url_preview_enabled: true\noembed:"
        f" {{additional_providers: [{tmp_path / 'providers.json'}]}}\n"
    )
    server = TestServer(tmp_path, sqlite_database, on, preview_web=pages)
    yield server.register("alice")
    server.app.media.close_workers()


def ask(user: User, url: str) -> Any:
    return user.get(f"/_matrix/client/v1/media/preview_url?url={quote(url, safe='')}").json


@pytest.mark.parametrize(
    ("url", "asked"),
    [
        (
            "https://www.tube.example/watch?v=1&t=2",
            TUBE + "?url=https%3A%2F%2Fwww.tube.example%2Fwatch%3Fv%3D1%26t%3D2&format=json",
        ),
        (
            "https://tube.example/v?d=1",
            TUBE + "?url=https%3A%2F%2Ftube.example%2Fv%3Fd%3D1&format=json",
        ),
        ("https://photos.example/a/b", PHOTOS + "&url=https%3A%2F%2Fphotos.example%2Fa%2Fb"),
        ("http://www.tube.example/watch", None),
        ("https://tube.example/vxd=1", None),
        ("https://evil.example/.tube.example/watch", None),
        ("https://photos.example/a", None),
        ("https://xml.example/a", None),
    ],
)
def test_a_configured_provider_is_asked_instead_of_the_page(
    alice: User, pages: LinkedPages, url: str, asked: str | None
) -> None:
    pages.put(url, "<title>Consent to cookies</title>")
    if asked is not None:
        document = {"type": "photo", "title": "Plov", "url": "https://cdn.example/p.png"}
        pages.put(asked, json.dumps(document), "application/json")
        pages.put("https://cdn.example/p.png", picture(64, 48), "image/png")
    said = ask(alice, url)
    if asked is None:
        assert said == {"og:title": "Consent to cookies"}
    else:
        assert (said["og:title"], said["og:image:width"]) == ("Plov", 64)
        assert [each for each, _ in pages.asked] == [asked, "https://cdn.example/p.png"]


@pytest.mark.parametrize("document", [None, "{}", "[", '{"title": 5}'])
def test_an_empty_document_of_a_provider_is_ignored(
    alice: User, pages: LinkedPages, document: str | None
) -> None:
    url = "https://tube.example/v?d=1"
    pages.put(url, "<title>Plov</title>")
    if document is not None:
        pages.put(
            TUBE + "?url=https%3A%2F%2Ftube.example%2Fv%3Fd%3D1&format=json",
            document,
            "application/json",
        )
    assert ask(alice, url) == {"og:title": "Plov"}


def test_patterns_of_providers_match_long_urls_in_linear_time() -> None:
    fits = make_matcher("https://a.example/" + "*a" * 50 + "*b")
    began = time.process_time()
    assert not fits("https://a.example/" + "a" * 2000)
    assert time.process_time() - began < 1
