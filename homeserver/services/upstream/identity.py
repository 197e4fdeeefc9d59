"""What identity providers have in common: whom they name, where a sign-in leads, and how it may
end.

Laws:
- Who somebody is, is the subject: the provider's name that never changes and is never given to
  another. The local part, the name and the address that come with it are wishes.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from hashlib import blake2b
from typing import Final, Protocol

import msgspec

from federation.protocol.ids import UserID
from homeserver.config.upstream import AttributeRequirement

LONGEST_SUBJECT: Final = 512
LONGEST_NAME: Final = 256
LONGEST_SESSION: Final = 2000
"""In bytes: it is found by an index."""
MOST_ADDRESSES: Final = 10
_ADDRESS: Final = re.compile(r"[^\s@\x00-\x1f]{1,64}@[^\s@\x00-\x1f]{1,190}")
_AGAIN: Final = "again"
_NOT_IN_LOCALPARTS: Final = re.compile(r"[^a-z0-9._=/+-]")


class UpstreamIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody, as a provider says."""

    subject: str
    localpart: str | None = None
    """The name that a new account would have."""
    display_name: str | None = None
    emails: tuple[str, ...] = ()
    picture: str | None = None
    """The address of a picture."""
    session: str | None = None
    """What the provider calls this sign-in, to say later that it has ended."""
    confirm_localpart: bool = False
    proved_ts: int | None = None
    """When they last proved there who they are, in milliseconds since 1970; None where the provider
    does not say."""


def compute_said(identity: UpstreamIdentity) -> tuple[str, str]:
    """What tells whether something else is said of a person than before: hashes of the name and of
    the addresses."""
    return _digest(identity.display_name), _digest(sorted(identity.emails))


def _digest(told: object) -> str:
    return blake2b(msgspec.json.encode(told), digest_size=16).hexdigest()


class ForClient(msgspec.Struct, frozen=True, tag="client"):
    """Somebody signs in with a client, which waits for them, with a token, at this address."""

    redirect_url: str


class ForConfirmation(msgspec.Struct, frozen=True, tag="confirmation"):
    """Somebody confirms what a client is about to do in their account."""

    uia_session: str


class ForPage(msgspec.Struct, frozen=True, tag="page"):
    """Somebody signs in to the pages of this server; `next`: where to go on, a path of this server.
    `again`: they are to prove who they are although the provider knows it already."""

    next: str
    again: bool = False


Purpose = ForClient | ForConfirmation | ForPage


class ProviderInfo(msgspec.Struct, frozen=True):
    """A provider as people and the rest of the server see it."""

    provider_id: str
    """In addresses, and in the database."""
    name: str
    icon: str | None = None
    brand: str | None = None
    allow_existing_users: bool = False
    enable_registration: bool = True

    @property
    def in_login(self) -> dict[str, object]:
        """spec: client-server-api#definition-mloginsso-flow-schema"""
        shown = {"id": self.provider_id, "name": self.name, "icon": self.icon, "brand": self.brand}
        return {key: value for key, value in shown.items() if value is not None}


class OfferedProviders(msgspec.Struct, frozen=True):
    """The providers that people may choose from, in the order in which they see them."""

    infos: tuple[ProviderInfo, ...] = ()
    own_pages: bool = False
    """Whether people may sign in on this server's own pages, for apps of the older API too."""

    @property
    def flow(self) -> dict[str, object] | None:
        """`m.login.sso` as clients are told; None where it is not offered. spec:
        client-server-api#oauth-20-aware-clients"""
        if not self.infos and not self.own_pages:
            return None
        flow: dict[str, object] = {"type": "m.login.sso"}
        if self.infos:
            flow["identity_providers"] = [provider.in_login for provider in self.infos]
        if self.own_pages:
            # before v1.18 the flag had the second name
            flow |= {
                "oauth_aware_preferred": True,
                "org.matrix.msc3824.delegated_oidc_compatibility": True,
            }
        return flow


class Departure(msgspec.Struct, frozen=True):
    """Where the browser is sent, and what is to be remembered until it comes back."""

    url: str
    kept: Mapping[str, str]


class UpstreamProvider(Protocol):
    """Something that says who people are, in their browsers."""

    info: ProviderInfo

    async def depart(self, flow_id: str, *, again: bool) -> Departure:
        """Send somebody there; `flow_id` comes back with them. `again`: the provider is to ask them
        who they are although it knows. Raises `Refused`."""
        ...


class Reason(Enum):
    """Why a sign-in ends without success. Values are names of texts for people, in
    `upstream_refused.html`."""

    OLD = "old"
    """Nothing like it is under way, or not in this browser."""
    PROVIDER_FAILED = "provider_failed"
    CANCELLED = "cancelled"
    """The provider says that the person did not want it, or may not."""
    NOT_ALLOWED = "not_allowed"
    """Something that everybody must have is missing."""
    NO_ACCOUNT = "no_account"
    TAKEN = "taken"
    """The account is linked to another person of the provider."""
    DEACTIVATED = "deactivated"
    EXPIRED = "expired"
    LOCKED = "locked"
    AWAITING_APPROVAL = "awaiting_approval"
    NOT_AGAIN = "not_again"
    """They were to prove who they are once more, and the provider did not ask them."""
    OTHER_PERSON = "other_person"
    """Somebody else signed in than the one who was to confirm."""
    UNKNOWN_PROVIDER = "unknown_provider"
    BAD_ADDRESS = "bad_address"
    """There is no telling where to go on."""


class Refused(Exception):
    """A sign-in ends. `str()` is for the log: what a provider did wrong is not told to people."""

    def __init__(
        self,
        reason: Reason,
        text: str = "",
        *,
        user_id: str | None = None,
        person: tuple[str, str] | None = None,
    ) -> None:
        """Whom records are kept of it, where somebody has proved who they are: `user_id`, or the
        `person` (provider and subject) whose account it is, if they have one."""
        super().__init__(text or reason.value)
        self.reason = reason
        self.user_id = None if user_id is None else UserID(user_id)
        self.person = person


class OtherPerson(Refused):
    """Somebody else has proved who they are than the one who was to confirm something."""

    def __init__(
        self, operation: str, owner: UserID, came: str | None, provider: ProviderInfo
    ) -> None:
        """`operation`: what `owner` was to confirm; `came`: whose account it is that came, None
        where they have none."""
        super().__init__(
            Reason.OTHER_PERSON, f"{owner} was to confirm, and {came} came", user_id=owner
        )
        self.operation = operation
        self.owner = owner
        self.came = came
        self.provider = provider


CLOCK_SLACK: Final = 60
"""Seconds by which the clock of a provider may differ."""


def check_again(
    flow_kept: Mapping[str, str], proved: float | None, now: float, *, must_say: bool = True
) -> int | None:
    """When somebody proved who they are, in milliseconds since 1970, of what the provider says of
    it (`proved`, in seconds); None where it does not say. Raises `Refused` where they were to do so
    on this way (see `keep_again`), and did it before, or where the provider does not say: that it
    was told to ask them went through their browser, where they could take it away.

    `must_say`: False where it is known otherwise that the provider asked, or where it is taken for
    granted."""
    asked = flow_kept.get(_AGAIN)
    if asked is None:
        return None if proved is None else int(min(proved, now) * 1000)
    if proved is None and must_say:
        raise Refused(Reason.NOT_AGAIN, "the provider does not say when it asked who it is")
    if proved is not None and proved < int(asked) - CLOCK_SLACK:
        raise Refused(Reason.NOT_AGAIN, "the provider did not ask who it is")
    return int(asked) * 1000


def keep_again(*, again: bool, now: float) -> dict[str, str]:
    """What a departure keeps for `check_again`."""
    return {_AGAIN: str(int(now))} if again else {}


def fit_localpart(wish: str) -> str:
    """A name as a local part: in small letters, and what may not be in it as `=` and two
    hexadecimal digits a byte.

    spec: appendices#mapping-from-other-character-sets
    """
    lower = wish.lower()
    return _NOT_IN_LOCALPARTS.sub(
        lambda found: "".join(f"={byte:02x}" for byte in found[0].encode()), lower
    )


def clean_name(text: object) -> str | None:
    """A name that can be shown, or None."""
    if not isinstance(text, str):
        return None
    return " ".join(text.replace("\0", "").split())[:LONGEST_NAME] or None


def clean_session(text: object) -> str | None:
    """What a provider calls a sign-in, or None where it cannot be kept."""
    if (
        not isinstance(text, str)
        or not text
        or "\0" in text
        or len(text.encode(errors="replace")) > LONGEST_SESSION
    ):
        return None
    return text


def clean_addresses(texts: Iterable[object]) -> tuple[str, ...]:
    """Those that are e-mail addresses, in small letters."""
    found = [text.strip().lower() for text in texts if isinstance(text, str)]
    return tuple(dict.fromkeys(text for text in found if _ADDRESS.fullmatch(text)))[:MOST_ADDRESSES]


def check_subject(subject: str) -> str:
    """Raises `Refused` for what is nobody's name."""
    if not subject or len(subject) > LONGEST_SUBJECT or "\0" in subject:
        raise Refused(Reason.PROVIDER_FAILED, "the provider does not say who it is")
    return subject


def check_requirements(
    requirements: Sequence[AttributeRequirement],
    attributes: Mapping[str, object],
    provider_id: str,
    subject: str,
) -> None:
    """Raises `Refused` unless all of them are met by this person. An attribute may have one value
    or a list of them."""
    for required in requirements:
        found = attributes.get(required.attribute)
        values = {
            str(each)
            for each in (found if isinstance(found, list | tuple) else [found])
            if each is not None
        }
        wanted = {*required.one_of, *([required.value] if required.value is not None else [])}
        if not (values & wanted if wanted else values):
            text = f"{required.attribute} is not as attribute_requirements wants it"
            raise Refused(Reason.NOT_ALLOWED, text, person=(provider_id, subject))
