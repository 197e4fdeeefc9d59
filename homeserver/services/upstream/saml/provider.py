"""Signs in users with a SAML 2 identity provider: redirects there and reads the assertion that the
browser brings back.

Laws:
- An assertion is accepted once, and only if it is signed, for this server, not expired, and the
  response to a pending request of ours.
- The library runs in threads, because it starts the program `xmlsec1` for each XML signature and
  waits for it.

spec: saml-profiles-2.0-os section 4.1
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import msgspec
from twisted.internet.interfaces import IReactorTime

from homeserver.config.upstream import SAML2Options
from homeserver.services.login.passwords import Threads
from homeserver.services.upstream.identity import (
    ProviderInfo,
    ProviderRedirect,
    RefusalReason,
    SignInRefused,
    UpstreamIdentity,
    check_reauthentication,
    check_requirements,
    check_subject,
    clean_addresses,
    clean_name,
    clean_session_id,
    map_to_localpart,
    reauthentication_state,
)
from homeserver.services.upstream.login_flows import SignInFlow
from homeserver.services.upstream.saml.logout import SAMLLogoutLibrary, SAMLSession, encode_session
from homeserver.services.upstream.saml.metadata import SAML_WORK, SAMLMetadata, SAMLMetadataLibrary
from storage.upstream.login_flows import UpstreamFlowStore

PROVIDER_ID: Final = "saml"
RESPONSE_PATH: Final = "_synapse/client/saml2/authn_response"
METADATA_PATH: Final = "_synapse/client/saml2/metadata.xml"
LOGOUT_PATH: Final = "_synapse/client/saml2/logout"
MAX_RESPONSE_LENGTH: Final = 512 * 1024
SUBJECT_ATTRIBUTE: Final = "uid"
_REQUEST: Final = "request"
_STARTED: Final = "started"
_NOT_IN_NAMES: Final = re.compile(r"[^a-z0-9._=/-]")


class SAMLAssertion(msgspec.Struct, frozen=True):
    """A provider's assertion. `expires`: seconds since 1970."""

    assertion_id: str
    expires: float
    persistent_name: str | None
    """The persistent NameID, if the provider gives one."""
    attributes: Mapping[str, Sequence[str]]
    session: SAMLSession | None = None
    """The provider's name of this session, which a later logout names."""
    authenticated_at: float | None = None
    """Time of the authentication, in seconds since 1970."""


class SAMLLibrary(SAMLMetadataLibrary, SAMLLogoutLibrary, Protocol):
    """The SAML library. Call its methods in threads; they are slow. They raise `SignInRefused`."""

    def make_request(self, relay_state: str, *, reauthenticate: bool) -> tuple[str, str]:
        """Return the ID of a new request, and the URL to redirect to. `reauthenticate`: the
        provider must authenticate the user again."""
        ...

    def read_response(self, response: str, request_id: str) -> SAMLAssertion:
        """Check and read the response to a request."""
        ...

    def metadata(self) -> bytes:
        """Return this server's metadata in XML."""
        ...


class SAMLProvider:
    """The SAML provider."""

    def __init__(
        self,
        *,
        clock: IReactorTime,
        threads: Threads,
        store: UpstreamFlowStore,
        library: SAMLLibrary,
        config: SAML2Options,
        metadata: SAMLMetadata,
    ) -> None:
        self._clock = clock
        self._metadata = metadata
        self._threads = threads
        self._store = store
        self._library = library
        self._config = config
        self.info = ProviderInfo(
            PROVIDER_ID,
            config.idp_name,
            config.idp_icon,
            config.idp_brand,
            config.allow_existing_users,
        )

    async def begin_sign_in(self, flow_id: str, *, reauthenticate: bool) -> ProviderRedirect:
        """Implement `UpstreamProvider.begin_sign_in`."""
        await self._metadata.make_ready()
        request_id, url = await self._threads.run(
            lambda: self._library.make_request(flow_id, reauthenticate=reauthenticate), SAML_WORK
        )
        now = self._clock.seconds()
        return ProviderRedirect(
            url,
            {
                _REQUEST: request_id,
                _STARTED: str(int(now)),
                **reauthentication_state(again=reauthenticate, now=now),
            },
        )

    async def identify(self, flow: SignInFlow, response: str) -> UpstreamIdentity:
        """Return the identity that a response asserts. Raises `SignInRefused`."""
        if not response or len(response) > MAX_RESPONSE_LENGTH:
            raise SignInRefused(
                RefusalReason.PROVIDER_FAILED, "the SAML response is missing or too long"
            )
        if (
            int(flow.provider_state[_STARTED]) + self._config.saml_session_lifetime / 1000
            <= self._clock.seconds()
        ):
            raise SignInRefused(RefusalReason.OLD)
        request_id = flow.provider_state[_REQUEST]
        await self._metadata.make_ready()
        assertion = await self._threads.run(
            lambda: self._library.read_response(response, request_id), SAML_WORK
        )
        if not await self._store.add_used_assertion(
            assertion.assertion_id, int(assertion.expires * 1000)
        ):
            raise SignInRefused(
                RefusalReason.OLD, f"the assertion {assertion.assertion_id} was used before"
            )
        identity = self._identity(assertion)
        attributes = {key: list(value) for key, value in assertion.attributes.items()}
        check_requirements(
            self._config.attribute_requirements, attributes, PROVIDER_ID, identity.subject
        )
        authenticated_ts = check_reauthentication(
            flow.provider_state, assertion.authenticated_at, self._clock.seconds()
        )
        return msgspec.structs.replace(identity, authenticated_ts=authenticated_ts)

    async def metadata(self) -> bytes:
        """Return this server's metadata in XML."""
        return await self._threads.run(self._library.metadata, SAML_WORK)

    def _identity(self, assertion: SAMLAssertion) -> UpstreamIdentity:
        attributes = assertion.attributes
        subject = _first(attributes, SUBJECT_ATTRIBUTE) or assertion.persistent_name
        templates = self._config.user_mapping_provider.config
        source = _first(attributes, templates.mxid_source_attribute)
        given_name, surname = _first(attributes, "givenName"), _first(attributes, "sn", "surname")
        display_name = _first(attributes, "displayName") or " ".join(
            each for each in (given_name, surname) if each
        )
        return UpstreamIdentity(
            subject=check_subject(subject or ""),
            localpart=None if source is None else self._localpart(source, templates.mxid_mapping),
            display_name=clean_name(display_name) or clean_name(_first(attributes, "cn")),
            session_id=None
            if assertion.session is None
            else clean_session_id(encode_session(assertion.session)),
            emails=clean_addresses((*attributes.get("email", ()), *attributes.get("mail", ()))),
        )

    @staticmethod
    def _localpart(source: str, mapping: str) -> str:
        return (
            map_to_localpart(source)
            if mapping == "hexencode"
            else _NOT_IN_NAMES.sub(".", source.lower())
        )


class OptionalSAML:
    """Holds the SAML provider, if one is configured."""

    def __init__(self, provider: SAMLProvider | None) -> None:
        self.provider = provider


def _first(attributes: Mapping[str, Sequence[str]], *names: str) -> str | None:
    return next((attributes[name][0] for name in names if attributes.get(name)), None)
