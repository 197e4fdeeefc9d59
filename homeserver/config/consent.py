"""Options about terms of service and other policies that users agree to."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from homeserver.config.option import option, required

_ID: Final = re.compile(r"[0-9A-Za-z._~-]{1,255}")
"""spec: appendices#opaque-identifiers"""
_LANGUAGE: Final = re.compile(r"[A-Za-z]{2,8}(?:[-_][0-9A-Za-z]{1,8})*")


def _check_url(url: str | None) -> str | None:
    if url is None or (
        url.startswith(("https://", "http://")) and url.isprintable() and " " not in url
    ):
        return None
    return "must start with http:// or https://"


def _check_version(version: str) -> str | None:
    return (
        None
        if _ID.fullmatch(version)
        else "must have 1 to 255 characters: letters, digits and . _ ~ -"
    )


def _check_documents(documents: Mapping[str, "PolicyDocumentOptions"]) -> str | None:
    if not documents:
        return "must contain the document in at least one language"
    for language, document in documents.items():
        if not _LANGUAGE.fullmatch(language):
            return f"must have language codes such as en or uz-Cyrl as keys, not {language!r}"
        if (document.url is None) == (document.path is None):
            return f"must have either `url` or `path` for {language}"
    return None


def _check_policies(policies: Mapping[str, "PolicyOptions"]) -> str | None:
    invalid = [name for name in policies if not _ID.fullmatch(name)]
    return (
        f"must have names of letters, digits and . _ ~ -, not {invalid[0]!r}" if invalid else None
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyDocumentOptions:
    """A policy document in one language."""

    name: str = required("The title of the document in this language.", example="Terms of use")
    url: str | None = option(
        None,
        "The URL of the document.",
        example="https://example.org/terms-1.2-en.html",
        check=_check_url,
    )
    path: Path | None = option(
        None,
        "A file with the text of the document, instead of `url`. This server shows the text. The "
        "format is UTF-8 with an empty line between paragraphs, `# ` before headings, `- ` before "
        "list items.",
        example="terms-en.txt",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyOptions:
    """A policy that users agree to."""

    version: str = required(
        "The version of the document. After a change, everybody is asked again.",
        example='"1.2"',
        check=_check_version,
    )
    documents: Mapping[str, PolicyDocumentOptions] = required(
        "The document, by language.", check=_check_documents
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class UserConsentOptions:
    """The policies that users agree to, when they are asked, and what they may do before."""

    policies: Mapping[str, PolicyOptions] = option(
        {},
        "The documents, each with a version and one text per language.",
        example=(
            '{terms: {version: "1.2", documents: {en: {name: Terms of use, url: '
            '"https://example.org/terms"}}}}'
        ),
        check=_check_policies,
    )
    require_at_registration: bool = option(
        True, "Asks people to accept the documents when they register in an app."
    )
    block_events_error: str | None = option(
        None,
        "The error message for people who have not accepted the current versions. Until they "
        "accept them, they can read but not send. `%(consent_uri)s` stands for the URL of the "
        "page on which they accept them. `null`: they can send.",
        example='"Please read and accept our terms first: %(consent_uri)s"',
    )
