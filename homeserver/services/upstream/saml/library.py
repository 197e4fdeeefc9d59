"""Implements the SAML service provider with pysaml2, behind the interface in `provider.py`. Loaded
only if SAML is configured.

Laws:
- Whatever the settings are, unsigned assertions, unsolicited assertions and unsigned logout
  requests are refused.
- pysaml2 fetches nothing. The provider's metadata come from files, or from `metadata.py`, which
  fetches them with the server's HTTP client.
- pysaml2 stores a record of each user who signs in. The record is removed immediately, because
  nothing needs it.
"""

import time
import zlib
from base64 import b64decode
from calendar import timegm
from collections.abc import Mapping, Sequence
from copy import deepcopy
from logging import CRITICAL, getLogger
from pathlib import Path
from typing import Any, Final

from lxml import etree
from saml2 import BINDING_HTTP_POST, BINDING_HTTP_REDIRECT, BINDING_SOAP, SAMLError
from saml2.client import Saml2Client
from saml2.config import SPConfig
from saml2.metadata import create_metadata_string
from saml2.pack import make_soap_enveloped_saml_thingy
from saml2.request import LogoutRequest
from saml2.response import AuthnResponse
from saml2.s_utils import success_status_factory
from saml2.saml import NAMEID_FORMAT_PERSISTENT, NameID
from saml2.samlp import NAMESPACE as SAML_PROTOCOL
from saml2.schema.soapenv import NAMESPACE as SOAP_ENVELOPE
from saml2.sigver import SIGNER_ALGS, extract_rsa_key_from_x509_cert, pem_format
from saml2.time_util import str_to_time
from saml2.validate import validate_on_or_after

from homeserver.services.upstream.identity import RefusalReason, SignInRefused
from homeserver.services.upstream.saml.logout import (
    MAX_REQUEST_LENGTH,
    DetachedSignature,
    SAMLLogoutMessage,
    SAMLLogoutRequest,
    SAMLSession,
)
from homeserver.services.upstream.saml.provider import (
    LOGOUT_PATH,
    METADATA_PATH,
    RESPONSE_PATH,
    SAMLAssertion,
)

CLOCK_SLACK_SECONDS: Final = 60
"""Allowed difference of clocks."""
MAX_LOGOUT_REQUEST_AGE: Final = 300
"""Maximum age of a logout request in seconds, so that an intercepted one does not end later
sessions."""
LOGOUT_ID_SECONDS: Final = 2 * 24 * 3600
"""The time for which the ID of a logout request is stored, so that it is used once. The library,
too, refuses older ones."""
MAX_NAME_LENGTH: Final = 512


class PySAML2:
    """Holds the library with its settings and the provider's metadata."""

    def __init__(
        self, *, settings: Mapping[str, Any], idp_entityid: str | None, base_url: str, folder: Path
    ) -> None:
        """`folder`: base of relative metadata paths. Raises `ValueError` for invalid settings."""
        # the caller logs each refused response once; anybody can send one
        getLogger("saml2").setLevel(CRITICAL + 1)
        self._settings = complete_settings(settings, base_url, folder)
        self._idp_entityid = idp_entityid
        client, self._config = self._load(())
        self._known: tuple[Saml2Client, str] | None = None
        """The client and the provider's entity ID, replaced together because threads read them."""
        if not _is_fetched(settings):
            self._known = (client, self._provider_of(self._config))

    @property
    def is_ready(self) -> bool:
        """Implement `SAMLMetadataLibrary.is_ready`."""
        return self._known is not None

    def use(self, documents: Sequence[bytes]) -> None:
        """Implement `SAMLMetadataLibrary.use`."""
        client, config = self._load(documents)
        self._known = (client, self._provider_of(config))

    def _provider_of(self, config: SPConfig) -> str:
        known = list(config.metadata.identity_providers()) if config.metadata is not None else []
        if self._idp_entityid is not None:
            known = [each for each in known if each == self._idp_entityid]
        if len(known) != 1:
            raise ValueError(
                f"saml2_config: the metadata have {len(known)} matching identity providers; "
                "`idp_entityid` must select exactly one"
            )
        return str(known[0])

    def clear(self) -> None:
        """Implement `SAMLMetadataLibrary.clear`."""
        self._known = None

    def _load(self, documents: Sequence[bytes]) -> tuple[Saml2Client, SPConfig]:
        metadata = self._settings["metadata"]
        inline = [
            *metadata.get("inline", ()),
            *(document.decode("utf-8", "replace") for document in documents),
        ]
        try:
            # the library keeps and modifies its arguments
            settings = {
                **deepcopy(self._settings),
                "metadata": {**metadata, **({"inline": inline} if inline else {})},
            }
            config = SPConfig().load(settings)
            return Saml2Client(config=config), config
        except Exception as error:  # the library raises exceptions of any type
            raise ValueError(f"saml2_config.sp_config cannot be used: {error}") from error

    def _provider(self) -> tuple[Saml2Client, str]:
        if self._known is None:
            raise SignInRefused(
                RefusalReason.PROVIDER_FAILED, "the SAML metadata are not loaded yet"
            )
        return self._known

    def make_request(self, relay_state: str, *, reauthenticate: bool) -> tuple[str, str]:
        """Implement `SAMLLibrary.make_request`."""
        client, idp = self._provider()
        try:
            request_id, info = client.prepare_for_authenticate(
                entityid=idp,
                relay_state=relay_state,
                binding=BINDING_HTTP_REDIRECT,
                **({"force_authn": "true"} if reauthenticate else {}),
            )
        except Exception as error:  # the library raises exceptions of any type
            raise SignInRefused(
                RefusalReason.PROVIDER_FAILED, f"the SAML request cannot be made: {error}"
            ) from None
        return str(request_id), str(dict(info["headers"])["Location"])

    def read_response(self, response: str, request_id: str) -> SAMLAssertion:
        """Implement `SAMLLibrary.read_response`."""
        client, idp = self._provider()
        try:
            parsed = client.parse_authn_request_response(
                response, BINDING_HTTP_POST, outstanding={request_id: "/"}
            )
            if not isinstance(parsed, AuthnResponse) or parsed.name_id is None:
                raise SAMLError("it has no NameID")
            client.users.remove_person(parsed.name_id)
            return _read(parsed, idp)
        # the library raises exceptions of any type, and anybody can send a response
        except Exception as error:
            raise SignInRefused(
                RefusalReason.PROVIDER_FAILED,
                f"the SAML response is refused: {type(error).__name__}: {error}",
            ) from None

    def make_logout(self, session: SAMLSession, relay_state: str) -> str | None:
        """Implement `SAMLLogoutLibrary.make_logout`."""
        client, idp = self._provider()
        url = _logout_url(client, idp)
        if url is None:
            return None
        name = NameID(
            text=session.name,
            format=session.format,
            name_qualifier=session.qualifier,
            sp_name_qualifier=session.sp_qualifier,
        )
        indexes = [session.index] if session.index else None
        try:
            _, request = client.create_logout_request(
                url, idp, name_id=name, session_indexes=indexes, sign=False
            )
            sign = bool(client.logout_requests_signed)
            info = client.apply_binding(
                BINDING_HTTP_REDIRECT, str(request), url, relay_state, sign=sign
            )
        except Exception as error:  # the library raises exceptions of any type
            raise SignInRefused(
                RefusalReason.PROVIDER_FAILED, f"the logout request cannot be made: {error}"
            ) from None
        return str(dict(info["headers"])["Location"])

    def read_logout(self, message: SAMLLogoutMessage) -> SAMLLogoutRequest:
        """Implement `SAMLLogoutLibrary.read_logout`."""
        client, idp = self._provider()
        try:
            request = _read_logout_request(client, idp, message)
            content = request.message
            return SAMLLogoutRequest(
                request_id=str(content.id),
                expires=timegm(str_to_time(content.issue_instant)) + LOGOUT_ID_SECONDS,
                name=str(content.name_id.text).strip(),
                indexes=[str(each.text).strip() for each in content.session_index],
                response=_envelope_with_response(client, content)
                if message.is_soap
                else _response_to(client, idp, content, message.relay_state),
            )
        # the library raises exceptions of any type, and anybody can send a request
        except Exception as error:
            raise SignInRefused(
                RefusalReason.PROVIDER_FAILED,
                f"the SAML logout request is refused: {type(error).__name__}: {error}",
            ) from None

    def metadata(self) -> bytes:
        """Implement `SAMLLibrary.metadata`."""
        return bytes(create_metadata_string(None, config=self._config))


def _read(parsed: AuthnResponse, idp: str) -> SAMLAssertion:
    if parsed.issuer() != idp:
        raise SAMLError(f"its issuer is {parsed.issuer()}")
    assertion = parsed.assertion
    ends = [
        timegm(str_to_time(each.subject_confirmation_data.not_on_or_after))
        for each in assertion.subject.subject_confirmation
        if each.subject_confirmation_data.not_on_or_after
    ]
    name = parsed.name_id
    attributes = {
        str(key): [str(value) for value in values if isinstance(value, str)]
        for key, values in (parsed.ava or {}).items()
    }
    return SAMLAssertion(
        assertion_id=str(assertion.id),
        expires=max(ends) + CLOCK_SLACK_SECONDS,
        persistent_name=str(name.text)
        if name.format == NAMEID_FORMAT_PERSISTENT and name.text
        else None,
        attributes=attributes,
        session=_session_of(parsed),
        authenticated_at=max(
            (timegm(str_to_time(each.authn_instant)) for each in assertion.authn_statement),
            default=None,
        ),
    )


def _session_of(parsed: AuthnResponse) -> SAMLSession | None:
    name = parsed.name_id
    indexes = [
        str(each.session_index) for each in parsed.assertion.authn_statement if each.session_index
    ]
    index = indexes[0] if indexes else ""
    if not name.text or len(name.text) > MAX_NAME_LENGTH or len(index) > MAX_NAME_LENGTH:
        return None
    return SAMLSession(
        name.text.strip(), index, name.format, name.name_qualifier, name.sp_name_qualifier
    )


def _logout_url(client: Saml2Client, idp: str) -> str | None:
    """Return the provider's logout URL for browsers; None if it has none."""
    services = client.metadata.single_logout_service(idp, BINDING_HTTP_REDIRECT, "idpsso")
    return str(services[0]["location"]) if services else None


def _read_logout_request(
    client: Saml2Client, idp: str, message: SAMLLogoutMessage
) -> LogoutRequest:
    detached = message.signature
    binding = (
        BINDING_SOAP
        if message.is_soap
        else BINDING_HTTP_POST
        if detached is None
        else BINDING_HTTP_REDIRECT
    )
    receivers = client.config.endpoint("single_logout_service", binding, "sp")
    request = LogoutRequest(client.sec, receivers, None, CLOCK_SLACK_SECONDS)
    if detached is not None:
        _check_detached(client, idp, detached)
        text = inflate(b64decode(message.request))
    else:
        text = unwrap_soap(message.request) if message.is_soap else b64decode(message.request)
    request.loads(text, binding, origdoc=text, must=detached is None)
    content = request.message
    age = time.time() - timegm(str_to_time(content.issue_instant))
    if (
        not request.verify()
        or not content.destination
        or not -CLOCK_SLACK_SECONDS <= age <= MAX_LOGOUT_REQUEST_AGE + CLOCK_SLACK_SECONDS
    ):
        raise SAMLError("it is not current, or has no destination")
    if request.sender() != idp:
        raise SAMLError(f"its issuer is {request.sender()}")
    if content.not_on_or_after:
        validate_on_or_after(content.not_on_or_after, CLOCK_SLACK_SECONDS)
    if content.name_id is None or not content.name_id.text:
        raise SAMLError("it has no NameID")
    return request


def _check_detached(client: Saml2Client, idp: str, detached: DetachedSignature) -> None:
    """Verify a signature in the query. The library does so only if this server has a key, and
    verifies a new encoding of the query instead of the bytes that were sent."""
    signer = SIGNER_ALGS.get(detached.algorithm)
    if signer is None:
        raise SAMLError("its signature algorithm is unknown")
    signature, signed = b64decode(detached.signature), detached.signed.encode("ascii")
    keys = [
        extract_rsa_key_from_x509_cert(pem_format(text))
        for _, text in client.metadata.certs(idp, "any", "signing")
    ]
    if not any(signer.verify(signed, signature, key) for key in keys):
        raise SAMLError("its signature is not valid")


def inflate(data: bytes) -> bytes:
    """Return the raw DEFLATE data of the `HTTP-Redirect` binding decompressed. Raises `ValueError`
    if the result is longer than `MAX_REQUEST_LENGTH`."""
    decompressor = zlib.decompressobj(-zlib.MAX_WBITS)
    text = decompressor.decompress(data, MAX_REQUEST_LENGTH)
    if decompressor.unconsumed_tail:
        raise ValueError("it is too long")
    return text


def unwrap_soap(text: str) -> bytes:
    """Return the request in a SOAP envelope, with its namespace prefixes unchanged: the signature
    covers them, and the library would write others. Raises `SAMLError`.

    spec: saml-bindings-2.0-os section 3.2
    """
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False
    )
    try:
        envelope = etree.fromstring(text.encode(), parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise SAMLError(f"it is not XML: {error}") from None
    bodies = envelope.findall(f"{{{SOAP_ENVELOPE}}}Body")
    if (
        envelope.getroottree().docinfo.internalDTD is not None
        or envelope.tag != f"{{{SOAP_ENVELOPE}}}Envelope"
        or len(bodies) != 1
        or [child.tag for child in bodies[0]] != [f"{{{SAML_PROTOCOL}}}LogoutRequest"]
    ):
        raise SAMLError("it is not a SOAP envelope with one LogoutRequest")
    return etree.tostring(bodies[0][0], with_tail=False)


def _envelope_with_response(client: Saml2Client, request: Any) -> str:
    sign = bool(client.logout_responses_signed)
    response = client.create_logout_response(
        request, [BINDING_SOAP], success_status_factory(), sign=sign
    )
    return str(make_soap_enveloped_saml_thingy(str(response)))


def _response_to(
    client: Saml2Client, idp: str, request: Any, relay_state: str | None
) -> str | None:
    url = _logout_url(client, idp)
    if url is None:
        return None
    bindings = [BINDING_HTTP_REDIRECT]
    response = client.create_logout_response(
        request, bindings, success_status_factory(), sign=False
    )
    sign = bool(client.logout_responses_signed)
    info = client.apply_binding(
        BINDING_HTTP_REDIRECT, str(response), url, relay_state or "", response=True, sign=sign
    )
    return str(dict(info["headers"])["Location"])


def complete_settings(settings: Mapping[str, Any], base_url: str, folder: Path) -> dict[str, Any]:
    """Return the settings with defaults added and the mandatory values enforced."""
    service = dict(_mapping(settings.get("service")))
    own = dict(_mapping(service.get("sp")))
    endpoints = {
        "assertion_consumer_service": [(base_url + RESPONSE_PATH, BINDING_HTTP_POST)],
        "single_logout_service": [
            (base_url + LOGOUT_PATH, BINDING_HTTP_REDIRECT),
            (base_url + LOGOUT_PATH, BINDING_HTTP_POST),
            (base_url + LOGOUT_PATH, BINDING_SOAP),
        ],
        **_mapping(own.get("endpoints")),
    }
    provider = {
        "required_attributes": ["uid"],
        "optional_attributes": ["mail", "surname", "givenName", "displayName"],
        "want_response_signed": False,
        "logout_requests_signed": bool(settings.get("key_file")),
        "logout_responses_signed": bool(settings.get("key_file")),
        **own,
        "endpoints": endpoints,
        "want_assertions_signed": True,
        "allow_unsolicited": False,
    }
    metadata = {
        key: value for key, value in _mapping(settings.get("metadata")).items() if key != "remote"
    }
    if isinstance(metadata.get("local"), list):
        metadata["local"] = [str(folder / str(path)) for path in metadata["local"]]
    return {
        "entityid": base_url + METADATA_PATH,
        "allow_unknown_attributes": True,
        "accepted_time_diff": CLOCK_SLACK_SECONDS,
        **settings,
        "metadata": metadata,
        "service": {**service, "sp": provider},
    }


def _is_fetched(settings: Mapping[str, Any]) -> bool:
    return bool(_mapping(settings.get("metadata")).get("remote"))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
