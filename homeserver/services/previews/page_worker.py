"""A worker process that parses pages for previews. It is a process of its own because a parser of
hostile HTML may crash, hang or use too much memory.

It runs as a script and imports nothing of the server; for the protocol see
`homeserver.services.subprocesses.worker_processes`. It cannot write files or start processes, and
its memory is limited.

A job on standard input is a line of JSON, followed by a page or an oEmbed document. The line has
`kind` (`page` or `oembed`), `size` (bytes of the page or document), `url`, and `charset` (from the
HTTP headers). A result has `properties` (Open Graph), `image` and `oembed`. `image` and `oembed`
are absolute URLs or null. If the parser failed, the result also has `problem`.
"""

import codecs
import json
import os
import re
import resource
import sys
import traceback
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urljoin, urlsplit

from lxml import etree

MEMORY_BYTES: Final = 512 << 20
MAX_PROPERTIES: Final = 40
MAX_NAME_CHARS: Final = 60
MAX_VALUE_CHARS: Final = 1000
MAX_URL_CHARS: Final = 2048
MAX_ELEMENTS: Final = 20_000
"""Elements that are searched for text."""
TEXT_CHARS: Final = 300
_SKIPPED_TAGS: Final = frozenset(
    [
        "script",
        "style",
        "noscript",
        "template",
        "nav",
        "header",
        "footer",
        "aside",
        "svg",
        "canvas",
        "iframe",
        "form",
        "button",
        "select",
        "textarea",
        "menu",
        "dialog",
        "object",
        "embed",
        "video",
        "audio",
    ]
)
_META_BYTES: Final = 4096
"""A page declares its charset within these bytes."""
_META_CHARSET: Final = re.compile(
    rb"<meta[^>]{1,300}?charset\s*=\s*[\"']?\s*([a-zA-Z0-9_:.-]{1,40})", re.IGNORECASE
)
_XML_CHARSET: Final = re.compile(
    rb"^\s*<\?xml[^>]{1,200}?encoding\s*=\s*[\"']([a-zA-Z0-9_:.-]{1,40})[\"']"
)
_BYTE_ORDER_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ALIASES: Final = {
    "latin-1": "cp1252",
    "iso-8859-1": "cp1252",
    "iso8859-1": "cp1252",
    "ascii": "cp1252",
    "us-ascii": "cp1252",
}
"""Charsets that browsers replace. spec: the Encoding standard"""
_CONTROL: Final = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def decode(page: bytes, claimed: str) -> str:
    """Decode a page by its byte order mark, the charset in the headers, the charset in the page, or
    as UTF-8, in this order."""
    head = page[:_META_BYTES]
    for mark, name in _BYTE_ORDER_MARKS:
        if head.startswith(mark):
            return page.decode(name, "replace")
    found = _META_CHARSET.search(head) or _XML_CHARSET.search(head)
    for name in (claimed, "" if found is None else found[1].decode("ascii")):
        known = _text_codec(name)
        if known is not None:
            return page.decode(known, "replace")
    try:
        return page.decode("utf-8")
    except UnicodeDecodeError as error:
        # a page that is UTF-8 except for its end was cut in the middle of a character
        is_cut = error.reason == "unexpected end of data" and not page[: error.start].isascii()
        return page.decode("utf-8" if is_cut else "cp1252", "replace")


def _text_codec(name: str) -> str | None:
    name = name.strip("\"' ").lower()
    name = _ALIASES.get(name, name)
    try:
        found = codecs.lookup(name)
        # some codecs convert text to text or decompress: ignore them
        return (
            found.name
            if getattr(found, "_is_text_encoding", False) and found.name not in ("idna", "punycode")
            else None
        )
    except (LookupError, ValueError):
        return None


def parse_page(page: bytes, url: str, claimed: str) -> dict[str, Any]:
    """Return the metadata of a page."""
    text = decode(page, claimed).replace("\0", "")
    parser = etree.HTMLParser(
        recover=True, no_network=True, remove_comments=True, remove_pis=True, encoding="utf-8"
    )
    root = etree.fromstring(text.encode("utf-8", "replace"), parser)
    if root is None:
        return {"properties": {}, "image": None, "oembed": None}
    metas = dict(_metas(root))
    properties = {
        name: value
        for name, value in metas.items()
        if name.startswith("og:") and not name.startswith("og:image")
    }
    base = _base(root, url)
    _fall_back(properties, "og:title", metas, ("twitter:title", "dc.title"), lambda: _title(root))
    _fall_back(
        properties,
        "og:description",
        metas,
        ("twitter:description", "description"),
        lambda: _text(root),
    )
    properties = dict(list(properties.items())[:MAX_PROPERTIES])
    return {
        "properties": properties,
        "image": _absolute(base, _image(root, metas)),
        "oembed": _absolute(
            base, _link(root, lambda link: link.get("type") == "application/json+oembed")
        ),
    }


def parse_oembed(document: bytes, url: str) -> dict[str, Any]:
    """Return the metadata in an oEmbed document. https://oembed.com"""
    data = json.loads(document)
    names = (
        ("og:title", "title"),
        ("og:site_name", "provider_name"),
        ("og:description", "author_name"),
    )
    texts = {name: clean(data[key]) for name, key in names if isinstance(data.get(key), str)}
    image = data.get("url" if data.get("type") == "photo" else "thumbnail_url")
    return {
        "properties": {name: text for name, text in texts.items() if text},
        "image": _absolute(url, image) if isinstance(image, str) else None,
        "oembed": None,
    }


def _metas(root: Any) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for meta in root.iter("meta"):
        name = (
            (meta.get("property") or meta.get("name") or meta.get("itemprop") or "").strip().lower()
        )
        value = clean(meta.get("content") or "")
        if name and value and len(name) <= MAX_NAME_CHARS and name not in seen and name.isascii():
            seen.add(name)
            yield name, value


def _fall_back(
    properties: dict[str, str], name: str, metas: dict[str, str], others: tuple[str, ...], last: Any
) -> None:
    if name in properties:
        return
    value = next((metas[other] for other in others if other in metas), None) or last()
    if value:
        properties[name] = value


def _title(root: Any) -> str:
    for name in ("title", "h1", "h2", "h3"):
        found = next(root.iter(name), None)
        text = "" if found is None else clean(" ".join(found.itertext()))
        if text:
            return text
    return ""


def _text(root: Any) -> str:
    """Return the start of the readable text of a page, without navigation and the like."""
    body = next(root.iter("body"), None)
    found: list[str] = []
    length = 0
    for piece in () if body is None else _readable(body):
        if not piece:
            continue
        found.append(piece)
        length += len(piece)
        if length >= TEXT_CHARS:
            break
    text = clean(" ".join(found))
    if len(text) <= TEXT_CHARS:
        return text
    return text[:TEXT_CHARS].rsplit(" ", 1)[0].rstrip(" ,;:.") + "…"


def _readable(body: Any) -> Iterator[str]:
    """Yield texts in document order. It does not recurse, since a page may nest without limit."""
    stack: list[Any] = [body]
    count = 0
    while stack and count < MAX_ELEMENTS:
        count += 1
        each = stack.pop()
        if isinstance(each, str):
            yield " ".join(each.split())
            continue
        if each.tail and each is not body:
            stack.append(each.tail)
        if not isinstance(each.tag, str) or each.tag in _SKIPPED_TAGS:
            continue
        stack.extend(reversed(each))
        if each.text:
            stack.append(each.text)


def _image(root: Any, metas: dict[str, str]) -> str | None:
    for name in (
        "og:image:secure_url",
        "og:image",
        "og:image:url",
        "twitter:image",
        "twitter:image:src",
        "image",
    ):
        if name in metas:
            return metas[name]
    found = _link(root, lambda link: "image_src" in _rel(link))
    if found is not None:
        return found
    for count, image in enumerate(root.iter("img")):
        if count > 100:
            break
        if (
            _pixels(image.get("width")) >= 64
            and _pixels(image.get("height")) >= 64
            and image.get("src")
        ):
            return str(image.get("src"))
    return _link(root, lambda link: "apple-touch-icon" in _rel(link)) or _link(
        root, lambda link: "icon" in _rel(link)
    )


def _pixels(value: str | None) -> int:
    text = (value or "").removesuffix("px")
    return int(text) if text.isdecimal() and text.isascii() and len(text) < 6 else 0


def _rel(link: Any) -> list[str]:
    return (link.get("rel") or "").lower().split()


def _link(root: Any, wanted: Any) -> str | None:
    for link in root.iter("link"):
        if link.get("href") and wanted(link):
            return str(link.get("href"))
    return None


def _base(root: Any, url: str) -> str:
    found = next(root.iter("base"), None)
    return (None if found is None else _absolute(url, found.get("href"))) or url


def _absolute(base: str, address: str | None) -> str | None:
    """Return an absolute http(s) URL; None if the address is not one."""
    if not address:
        return None
    try:
        url = urljoin(base, address.strip())
        parts = urlsplit(url)
    except ValueError:
        return None
    return url if parts.scheme in ("http", "https") and len(url) <= MAX_URL_CHARS else None


def clean(text: str) -> str:
    """Return the text on one line, shortened, without control and bidirectional characters."""
    text = " ".join(_CONTROL.sub(" ", text).split())
    return text if len(text) <= MAX_VALUE_CHARS else text[: MAX_VALUE_CHARS - 1] + "…"


def main() -> None:
    """Run jobs until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    os.nice(10)
    for line in sys.stdin.buffer:
        job = json.loads(line)
        page = sys.stdin.buffer.read(job["size"])
        try:
            if job["kind"] == "oembed":
                found = parse_oembed(page, job["url"])
            else:
                found = parse_page(page, job["url"], job["charset"])
        except Exception as error:  # a parser may raise anything for a broken page
            # log the place, not the message, which may quote the page
            at = traceback.extract_tb(error.__traceback__)[-1]
            problem = f"{type(error).__name__} in {at.name}, line {at.lineno}"
            found = {"properties": {}, "image": None, "oembed": None, "problem": problem}
        sys.stdout.buffer.write(json.dumps({**found, "size": 0}).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
