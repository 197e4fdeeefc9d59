"""Policies that users accept, such as terms of service: their versions, languages and texts.

spec: client-server-api#terms-of-service-at-registration
"""

from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Final
from urllib.parse import quote

import msgspec

from homeserver.config.consent import UserConsentOptions
from homeserver.services.pages.languages import ENGLISH, Language

POLICY_PATH: Final = "/_mahalla/policies/{policy_id}/{version}/{code}"
MAX_TEXT_BYTES: Final = 1 << 20


class TextBlock(msgspec.Struct, frozen=True):
    """A block of text. `kind`: `heading`, `paragraph` or `list`."""

    kind: str
    lines: Sequence[str]


class PolicyText(msgspec.Struct, frozen=True):
    """A policy in one language. `blocks`: its text, where this server serves it; None: it is only
    at its URL."""

    code: str
    name: str
    url: str
    blocks: Sequence[TextBlock] | None = None


class Policy(msgspec.Struct, frozen=True):
    """A version of a policy, in all its languages."""

    policy_id: str
    version: str
    documents: Mapping[str, PolicyText]

    def choose(self, language: Language) -> PolicyText:
        """Return the document for a reader: in their language, in another script of it, in English,
        or in the first language that exists."""
        by_code = {
            code.replace("_", "-").lower(): document for code, document in self.documents.items()
        }
        tag = language.tag.lower()
        for wanted in (tag, tag.partition("-")[0], ENGLISH):
            if wanted in by_code:
                return by_code[wanted]
        return next(iter(self.documents.values()))


class Policies:
    """All policies, in the order of the configuration."""

    def __init__(self, policies: Sequence[Policy] = ()) -> None:
        self.all = tuple(policies)
        self.versions: Mapping[str, str] = {policy.policy_id: policy.version for policy in policies}
        """The current version of each policy."""
        text = "\n".join(
            f"{policy_id} {version}" for policy_id, version in sorted(self.versions.items())
        )
        self.fingerprint = sha256(text.encode()).hexdigest()[:32]
        """Identifies this set of versions."""

    def params(self) -> Mapping[str, object]:
        """Return the parameters of the `m.login.terms` stage."""
        return {
            "policies": {
                policy.policy_id: {
                    "version": policy.version,
                    **{
                        code: {"name": each.name, "url": each.url}
                        for code, each in policy.documents.items()
                    },
                }
                for policy in self.all
            }
        }

    def find(self, policy_id: str, version: str, code: str) -> PolicyText | None:
        """Return the document that this server serves at a path; None if there is none."""
        for policy in self.all:
            if (policy.policy_id, policy.version) == (policy_id, version):
                document = policy.documents.get(code)
                return document if document is not None and document.blocks is not None else None
        return None


def load_policies(user_consent: UserConsentOptions, base_url: str) -> Policies:
    """Return the configured policies. Raises `ValueError` for a file that cannot be read."""
    return Policies(
        [
            Policy(
                policy_id,
                policy.version,
                {
                    code: PolicyText(code, each.name, each.url)
                    if each.url is not None
                    else PolicyText(
                        code,
                        each.name,
                        base_url.rstrip("/")
                        + POLICY_PATH.format(
                            policy_id=quote(policy_id),
                            version=quote(policy.version),
                            code=quote(code),
                        ),
                        _read(policy_id, each.path),
                    )
                    for code, each in policy.documents.items()
                },
            )
            for policy_id, policy in user_consent.policies.items()
        ]
    )


def _read(policy_id: str, path: Path | None) -> Sequence[TextBlock]:
    assert path is not None  # the configuration was checked
    try:
        with path.open("rb") as file:
            content = file.read(MAX_TEXT_BYTES + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise ValueError(
            f"user_consent.policies.{policy_id}: {path} cannot be read: {error.strerror}"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"user_consent.policies.{policy_id}: {path} is not text in UTF-8"
        ) from error
    if len(content) > MAX_TEXT_BYTES:
        raise ValueError(f"user_consent.policies.{policy_id}: {path} is larger than 1M")
    return parse_text(text)


def parse_text(text: str) -> Sequence[TextBlock]:
    """Split a text into blocks: an empty line, a heading or the start of a list ends a block."""
    blocks: list[TextBlock] = []
    kind = ""
    lines: list[str] = []

    def end() -> None:
        if lines:
            blocks.append(TextBlock(kind, tuple(lines)))
            lines.clear()

    for line in text.splitlines():
        bare = line.strip()
        if bare.startswith("#") and bare.lstrip("#").startswith(" "):
            end()
            blocks.append(TextBlock("heading", (bare.lstrip("#").strip(),)))
        elif bare.startswith("- "):
            if kind != "list":
                end()
            kind = "list"
            lines.append(bare[2:].strip())
        elif not bare:
            end()
            kind = ""
        elif kind == "list" and lines:
            lines[-1] += f" {bare}"
        else:
            kind = "paragraph"
            lines.append(bare)
    end()
    return tuple(blocks)
