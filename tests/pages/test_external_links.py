"""External URLs that pages may lead to, and the texts shown for them."""

import pytest

from homeserver.services.pages.external_links import link_text, parse_link, parse_web_link


@pytest.mark.parametrize(
    ("link", "shown"),
    [
        ("https://app.example/go?a=b#c", "app.example"),
        ("http://localhost:8080/", "localhost:8080"),
        ("http://127.0.0.1/", "127.0.0.1"),
        ("http://[::1]:80/", "[::1]:80"),
        ("https://xn--e1afmkfd.example/{a}|b", "xn--e1afmkfd.example"),
        ("io.element:/callback", "io.element:"),
        ("element://app.example/x", "element:"),
    ],
)
def test_the_text_of_a_link_is_its_host(link: str, shown: str) -> None:
    assert link_text(link) == shown
    assert (parse_web_link(link) is not None) is link.startswith("http")


@pytest.mark.parametrize(
    "link",
    [
        "",
        "/path",
        "//evil.example/",
        "https:///evil.example/",
        "https:/evil.example/",
        "https:evil.example",
        "https://evil.example\\@good.example/",
        "https://evil.example\\.good.example/",
        "https://good.example@evil.example/",
        "https://@evil.example/",
        "https://good.example%2f.evil.example/",
        "https://good.example,evil.example/",
        "https://\u00e9vil.example/",
        "https://good.example\t.evil.example/",
        " https://good.example/",
        "https://good.example/\n",
        "https://good.example:port/",
        "https://good.example:99999/",
        "https://[good.example/",
        "https://" + "a" * 4096,
        "javascript:alert(1)",
        "JavaScript:alert(1)",
        "data:text/html,x",
    ],
)
def test_invalid_links_are_refused(link: str) -> None:
    assert parse_link(link) is None
    assert link_text(link) == ""
