"""The operator's name, logo and colours on pages and in e-mails."""

import re
from base64 import b64encode
from hashlib import sha256
from importlib.resources import files
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.commands.setup import find_problems
from homeserver.config.colours import (
    DARK,
    LIGHT,
    MIN_CONTRAST,
    contrast,
    find_lowest_contrast,
    lighten_for_dark,
)
from homeserver.config.load import ConfigError, load_config
from homeserver.config.pages import MAX_LOGO_BYTES
from homeserver.services.pages.branding import COLOUR
from storage.engine.database import Database
from tests.helpers.browser import Browser
from tests.helpers.images import picture
from tests.helpers.server import TestServer

SVG = (
    b'<svg xmlns="http://www.w3.org/2000/svg" width="8" height="8"><script>alert(1)</script></svg>'
)
MAIL = "public_baseurl: https://matrix.example.org\nemail: {smtp_host: mail.example.org}\n"
COLOURS = st.tuples(*[st.integers(0, 255)] * 3).map(
    lambda parts: "#" + "".join(f"{part:02x}" for part in parts)
)


def problems_of(folder: Path, branding: str) -> str:
    path = folder / "homeserver.yaml"
    path.write_text(f"server_name: example.org\nbranding: {branding}\n")
    with pytest.raises(ConfigError) as refused:
        load_config([path], {})
    return "\n".join(refused.value.lines)


def test_a_page_shows_the_complete_branding(tmp_path: Path, sqlite_database: Database) -> None:
    (tmp_path / "logo.png").write_bytes(picture(8, 8))
    (tmp_path / "dark.svg").write_bytes(SVG)
    config = (
        "branding: {name: Tea <University>, logo: logo.png, logo_dark: dark.svg,"
        " colour: '#1d4f91'}\n"
    )
    server = TestServer(tmp_path, sqlite_database, config)
    browser = Browser(server)
    for path in ("/", "/_mahalla/sign_in", "/_mahalla/register"):
        browser.open(path)
        assert browser.status == 200
        assert "Tea &lt;University&gt;</span>" in browser.text
        assert 'src="/_mahalla/logo"' in browser.text
        assert 'srcset="/_mahalla/logo_dark"' in browser.text
        [style] = re.findall(r"<style>(.*?)</style>", browser.text, re.DOTALL)
        assert "--accent: #1d4f91;" in style.partition("prefers")[0] + style.rpartition(":root")[0]
        policy = browser.answer.headers["content-security-policy"]
        assert f"style-src 'sha256-{b64encode(sha256(style.encode()).digest()).decode()}'" in policy
        assert "img-src 'self';" in policy
    assert "<title>Sign in – Tea &lt;University&gt;</title>" in (
        browser.open("/_mahalla/sign_in").body.decode()
    )
    logo = server.get("/_mahalla/logo")
    assert (logo.status, logo.headers["content-type"]) == (200, "image/png")
    assert logo.body == picture(8, 8)
    dark = server.get("/_mahalla/logo_dark")
    assert dark.headers["content-type"] == "image/svg+xml"
    assert "sandbox" in dark.headers["content-security-policy"]
    assert dark.headers["x-content-type-options"] == "nosniff"


def test_an_external_logo_is_the_only_external_source(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(
        tmp_path,
        sqlite_database,
        "branding: {logo_url: 'https://www.example.org:8443/a.png?b=1'}\n",
    )
    browser = Browser(server)
    browser.open("/")
    policy = browser.answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "img-src 'self' https://www.example.org:8443;" in policy
    assert 'src="https://www.example.org:8443/a.png?b=1"' in browser.text
    assert (server.get("/_mahalla/logo").status, server.get("/_mahalla/logo").errcode) == (
        404,
        "M_NOT_FOUND",
    )


def test_pages_without_branding_show_the_server_name(
    tmp_path: Path, sqlite_database: Database
) -> None:
    browser = Browser(TestServer(tmp_path, sqlite_database))
    browser.open("/_mahalla/sign_in")
    assert "<header" not in browser.text
    assert "<title>Sign in – example.org</title>" in browser.text


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_emails_have_the_branding(tmp_path: Path, sqlite_database: Database, kind: str) -> None:
    (tmp_path / "logo").write_bytes(picture(8, 8, kind))
    config = MAIL + "branding: {name: Choyxona, logo: logo, colour: '#7a1f1f'}\n"
    server = TestServer(tmp_path, sqlite_database, config)
    asked = {"email": "alice@example.org", "client_secret": "abc", "send_attempt": 1}
    assert server.post("/_matrix/client/v3/register/email/requestToken", asked).status == 200
    [(_, letter)] = server.relay.emails
    html = letter.get_body(("html",))
    plain = letter.get_body(("plain",))
    assert html is not None
    assert plain is not None
    text = html.get_content()
    assert "background:#7a1f1f" in text
    assert "Choyxona" in text
    assert "Choyxona" in plain.get_content()
    assert 'src="http' not in text
    pictures = [part for part in letter.walk() if part.get_content_maintype() == "image"]
    if kind == "PNG":
        assert 'src="cid:logo@email"' in text
        assert [part["content-id"] for part in pictures] == ["<logo@email>"]
        assert pictures[0].get_content() == picture(8, 8)
    else:
        assert "cid:" not in text
        assert pictures == []


@pytest.mark.parametrize(
    ("branding", "complaint"),
    [
        ("{colour: '#ffcc00'}", "it has 1.39:1 on #fbf6e2"),
        ("{colour_dark: '#086f66'}", "with dark pages"),
        ("{colour: red}", "must be a colour such as #086f66"),
        ("{name: ''}", "1 to 60 characters"),
        ("{logo_dark: dark.png}", "needs `logo`"),
        ("{logo_url: 'http://example.org/a.png'}", "must be an https:// address"),
        ('{logo_url: "https://example.org/a;script-src *"}', "must be an https:// address"),
        ("{logo_url: 'https://me@example.org/a'}", "must be an https:// address"),
    ],
)
def test_invalid_branding_is_refused(tmp_path: Path, branding: str, complaint: str) -> None:
    assert complaint in problems_of(tmp_path, branding)


def test_invalid_logo_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<html><svg></svg>")
    (tmp_path / "huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(MAX_LOGO_BYTES))
    for name, complaint in (
        ("page.html", "is not a picture that browsers show"),
        ("huge.png", "is larger than 256K"),
        ("nowhere.png", "cannot be read: No such file"),
    ):
        path = tmp_path / "homeserver.yaml"
        path.write_text(f"server_name: example.org\nbranding: {{logo: {name}}}\n")
        [line] = [
            line for line in find_problems(load_config([path], {}).config) if "branding" in line
        ]
        assert line.startswith(f"branding.logo: {tmp_path / name} {complaint}")


def test_contrast_ratios_are_computed() -> None:
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)  # the example of WCAG
    css = files("homeserver.web").joinpath("templates/pages.css").read_text()
    light, dark = css.split("prefers-color-scheme: dark")[:2]
    assert f"--paper: {LIGHT.page}" in light
    assert f"--field: {LIGHT.field}" in light
    assert f"--accent: {COLOUR}" in light
    assert f"--paper: {DARK.page}" in dark
    assert f"--field: {DARK.field}" in dark
    assert find_lowest_contrast(COLOUR, LIGHT)[0] >= MIN_CONTRAST


@given(COLOURS)
def test_derived_dark_colours_are_readable(colour: str) -> None:
    assert find_lowest_contrast(lighten_for_dark(colour), DARK)[0] >= MIN_CONTRAST
