"""Types that all identity providers share: identities, purposes of a sign-in, and refusals.

Law: only the subject identifies a person. The provider must never change or reassign it. The local
part, display name and e-mail addresses only suggest values for the account.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from hashlib import blake2b
from typing import Final, Protocol

import msgspec

from federation.protocol.ids import UserID
from homeserver.config.upstream import AttributeRequirementOptions

MAX_SUBJECT_LENGTH: Final = 512
MAX_NAME_LENGTH: Final = 256
MAX_SESSION_BYTES: Final = 2000
"""In bytes: an index holds it."""
MAX_ADDRESSES: Final = 10
_ADDRESS: Final = re.compile(r"[^\s@\x00-\x1f]{1,64}@[^\s@\x00-\x1f]{1,190}")
_NEW_SINCE: Final = "again"
_NOT_IN_LOCALPARTS: Final = re.compile(r"[^a-z0-9._=/+-]")


class UpstreamIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """A person as a provider describes them."""

    subject: str
    localpart: str | None = None
    """Suggested name of a new account."""
    display_name: str | None = None
    emails: tuple[str, ...] = ()
    picture: str | None = None
    """URL of a picture."""
    session_id: str | None = None
    """The provider's ID of this session, which a later logout names."""
    confirm_localpart: bool = False
    authenticated_ts: int | None = None
    """Time of the last authentication at the provider, in milliseconds since 1970; None if the
    provider does not say."""


def hash_profile(identity: UpstreamIdentity) -> tuple[str, str]:
    """Return hashes of the name and of the addresses, to detect changes at the provider."""
    return _digest(identity.display_name), _digest(sorted(identity.emails))


def _digest(value: object) -> str:
    return blake2b(msgspec.json.encode(value), digest_size=16).hexdigest()


class ForClient(msgspec.Struct, frozen=True, tag="client"):
    """A sign-in with a client, which expects the user with a login token at `redirect_url`."""

    redirect_url: str


class ForConfirmation(msgspec.Struct, frozen=True, tag="confirmation"):
    """The confirmation of an operation that a client requested (UIA)."""

    uia_session: str


class ForPage(msgspec.Struct, frozen=True, tag="page"):
    """A sign-in to this server's pages. `next_path`: the path to continue at. `reauthenticate`: the
    provider must authenticate the user again, even with an existing session."""

    next_path: str
    reauthenticate: bool = False


Purpose = ForClient | ForConfirmation | ForPage


class ProviderInfo(msgspec.Struct, frozen=True):
    """The name, icon and rules of a provider."""

    provider_id: str
    """Its ID in URLs and in the database."""
    name: str
    icon: str | None = None
    brand: str | None = None
    allow_existing_users: bool = False
    enable_registration: bool = True

    @property
    def as_json(self) -> dict[str, object]:
        """Its JSON in `identity_providers`. spec:
        client-server-api#definition-mloginsso-flow-schema"""
        fields = {"id": self.provider_id, "name": self.name, "icon": self.icon, "brand": self.brand}
        return {key: value for key, value in fields.items() if value is not None}


class OfferedProviders(msgspec.Struct, frozen=True):
    """The providers that users choose from, in display order."""

    infos: tuple[ProviderInfo, ...] = ()
    own_pages: bool = False
    """Whether users can sign in on this server's own pages, also with clients of the older API."""

    @property
    def flow(self) -> dict[str, object] | None:
        """The `m.login.sso` login flow; None if it is not offered. spec:
        client-server-api#oauth-20-aware-clients"""
        if not self.infos and not self.own_pages:
            return None
        flow: dict[str, object] = {"type": "m.login.sso"}
        if self.infos:
            flow["identity_providers"] = [provider.as_json for provider in self.infos]
        if self.own_pages:
            # the second is the flag's name before v1.18
            flow |= {
                "oauth_aware_preferred": True,
                "org.matrix.msc3824.delegated_oidc_compatibility": True,
            }
        return flow


class ProviderRedirect(msgspec.Struct, frozen=True):
    """The redirect to a provider, and the state to store until the browser returns
    (`provider_state`)."""

    url: str
    provider_state: Mapping[str, str]


class UpstreamProvider(Protocol):
    """A provider that identifies users through their browser."""

    info: ProviderInfo

    async def begin_sign_in(self, flow_id: str, *, reauthenticate: bool) -> ProviderRedirect:
        """Return the redirect to the provider, which returns `flow_id` in the callback.
        `reauthenticate`: the provider must authenticate the user again. Raises `SignInRefused`."""
        ...


class RefusalReason(Enum):
    """Why a sign-in failed. The values name the texts in `upstream_refused.html`."""

    OLD = "old"
    """The flow has expired or ended, or belongs to another browser."""
    PROVIDER_FAILED = "provider_failed"
    CANCELLED = "cancelled"
    """The provider reports that the user cancelled, or was denied access."""
    NOT_ALLOWED = "not_allowed"
    """An attribute that the configuration requires is missing."""
    NO_ACCOUNT = "no_account"
    TAKEN = "taken"
    """The account is linked to another subject of the provider."""
    DEACTIVATED = "deactivated"
    EXPIRED = "expired"
    LOCKED = "locked"
    AWAITING_APPROVAL = "awaiting_approval"
    NOT_AGAIN = "not_again"
    """The provider did not authenticate the user again, as requested."""
    OTHER_PERSON = "other_person"
    """The user who signed in is not the one who has to confirm."""
    UNKNOWN_PROVIDER = "unknown_provider"
    BAD_ADDRESS = "bad_address"
    """The address to continue at is missing or invalid."""


class SignInRefused(Exception):
    """A sign-in failed. `str()` is for the log only: pages do not show a provider's faults."""

    def __init__(
        self,
        reason: RefusalReason,
        text: str = "",
        *,
        user_id: str | None = None,
        person: tuple[str, str] | None = None,
    ) -> None:
        """For the audit log, if the user is authenticated: `user_id`, or the `person` (provider and
        subject), who may have no account."""
        super().__init__(text or reason.value)
        self.reason = reason
        self.user_id = None if user_id is None else UserID(user_id)
        self.person = person


class WrongAccount(SignInRefused):
    """The user who signed in is not the one who has to confirm an operation."""

    def __init__(
        self, operation: str, owner: UserID, actual: str | None, provider: ProviderInfo
    ) -> None:
        """`operation`: what `owner` has to confirm. `actual`: the account of the user who signed
        in; None if they have none."""
        super().__init__(
            RefusalReason.OTHER_PERSON,
            f"{actual} signed in, but {owner} has to confirm",
            user_id=owner,
        )
        self.operation = operation
        self.owner = owner
        self.actual = actual
        self.provider = provider


CLOCK_SLACK: Final = 60
"""Seconds by which the clock of a provider may differ."""


def check_reauthentication(
    flow_state: Mapping[str, str],
    authenticated: float | None,
    now: float,
    *,
    requires_time: bool = True,
) -> int | None:
    """Return the time of the authentication in milliseconds since 1970, from the provider's value
    `authenticated` in seconds; None if the provider gives none.

    Raises `SignInRefused` if this flow requires a new authentication (see `reauthentication_state`)
    and the provider reports an older one, or no time. The requirement passed through the user's
    browser, where they could remove it.

    `requires_time`: False if something else proves the new authentication, or it is taken on
    trust."""
    required_since = flow_state.get(_NEW_SINCE)
    if required_since is None:
        return None if authenticated is None else int(min(authenticated, now) * 1000)
    if authenticated is None and requires_time:
        raise SignInRefused(RefusalReason.NOT_AGAIN, "the provider gives no time of authentication")
    if authenticated is not None and authenticated < int(required_since) - CLOCK_SLACK:
        raise SignInRefused(
            RefusalReason.NOT_AGAIN, "the provider did not authenticate the user again"
        )
    return int(required_since) * 1000


def reauthentication_state(*, again: bool, now: float) -> dict[str, str]:
    """Return the state that a flow stores for `check_reauthentication`."""
    return {_NEW_SINCE: str(int(now))} if again else {}


def map_to_localpart(name: str) -> str:
    """Return a name as a local part: in lower case, with each byte of a disallowed character as `=`
    and two hexadecimal digits.

    spec: appendices#mapping-from-other-character-sets
    """
    lower = name.lower()
    return _NOT_IN_LOCALPARTS.sub(
        lambda found: "".join(f"={byte:02x}" for byte in found[0].encode()), lower
    )


def clean_name(text: object) -> str | None:
    """Return a display name with whitespace collapsed and cut to `MAX_NAME_LENGTH`, or None."""
    if not isinstance(text, str):
        return None
    return " ".join(text.replace("\0", "").split())[:MAX_NAME_LENGTH] or None


def clean_session_id(text: object) -> str | None:
    """Return a provider's session ID, or None if it cannot be stored."""
    if (
        not isinstance(text, str)
        or not text
        or "\0" in text
        or len(text.encode(errors="replace")) > MAX_SESSION_BYTES
    ):
        return None
    return text


def clean_addresses(texts: Iterable[object]) -> tuple[str, ...]:
    """Return the texts that are e-mail addresses, in lower case, without duplicates."""
    found = [text.strip().lower() for text in texts if isinstance(text, str)]
    return tuple(dict.fromkeys(text for text in found if _ADDRESS.fullmatch(text)))[:MAX_ADDRESSES]


def check_subject(subject: str) -> str:
    """Return the subject. Raises `SignInRefused` if it is empty, too long or has a NUL."""
    if not subject or len(subject) > MAX_SUBJECT_LENGTH or "\0" in subject:
        raise SignInRefused(RefusalReason.PROVIDER_FAILED, "the provider gives no usable subject")
    return subject


def check_requirements(
    requirements: Sequence[AttributeRequirementOptions],
    attributes: Mapping[str, object],
    provider_id: str,
    subject: str,
) -> None:
    """Raises `SignInRefused` unless the attributes meet all requirements. An attribute has one
    value or a list of values."""
    for required in requirements:
        found = attributes.get(required.attribute)
        values = {
            str(each)
            for each in (found if isinstance(found, list | tuple) else [found])
            if each is not None
        }
        wanted = {*required.one_of, *([required.value] if required.value is not None else [])}
        if not (values & wanted if wanted else values):
            text = f"{required.attribute} does not meet attribute_requirements"
            raise SignInRefused(RefusalReason.NOT_ALLOWED, text, person=(provider_id, subject))
