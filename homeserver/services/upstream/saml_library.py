"""pysaml2, as `saml.py` uses it: this server as a service provider. It is loaded where SAML is configured, and only there.

Laws:
- Whatever the settings say: an assertion that is not signed is refused, and so is one that nobody asked for.
- Metadata come from files: nothing is fetched past the server's own client.
- What the library would remember of people is forgotten at once.
"""

from calendar import timegm
from collections.abc import Mapping
from logging import CRITICAL, getLogger
from pathlib import Path
from typing import Any, Final

from saml2 import BINDING_HTTP_POST, BINDING_HTTP_REDIRECT, SAMLError
from saml2.client import Saml2Client
from saml2.config import SPConfig
from saml2.metadata import create_metadata_string
from saml2.response import AuthnResponse
from saml2.saml import NAMEID_FORMAT_PERSISTENT
from saml2.time_util import str_to_time

from homeserver.services.upstream.identity import Reason, Refused
from homeserver.services.upstream.saml import METADATA_PATH, RESPONSE_PATH, Assertion

SLACK_SECONDS: Final = 60
"""By which clocks may differ."""


class PySAML2:
    """The library, with its settings."""

    def __init__(self, settings: Mapping[str, Any], idp_entityid: str | None, base_url: str, folder: Path) -> None:
        """`folder`: where relative paths of metadata start. Raises `ValueError` for settings that are none."""
        # what is wrong with a response is said once, by who asked; anybody may send one
        getLogger("saml2").setLevel(CRITICAL + 1)
        try:
            config = SPConfig().load(complete_settings(settings, base_url, folder))
            self._client = Saml2Client(config=config)
        except Exception as error:  # the library raises whatever it likes
            raise ValueError(f"saml2_config.sp_config cannot be used: {error}") from error
        self._config = config
        known = list(config.metadata.identity_providers()) if config.metadata is not None else []
        if idp_entityid is not None:
            known = [each for each in known if each == idp_entityid]
        if len(known) != 1:
            raise ValueError(
                f"saml2_config: the metadata have {len(known)} identity providers that fit; `idp_entityid` names one"
            )
        self._idp = known[0]

    def make_request(self, relay_state: str) -> tuple[str, str]:
        """As `ServiceProvider.make_request`."""
        try:
            request_id, info = self._client.prepare_for_authenticate(
                entityid=self._idp, relay_state=relay_state, binding=BINDING_HTTP_REDIRECT
            )
        except Exception as error:  # the library raises whatever it likes
            raise Refused(Reason.PROVIDER_FAILED, f"no SAML request can be made: {error}") from None
        return str(request_id), str(dict(info["headers"])["Location"])

    def read_response(self, response: str, request_id: str) -> Assertion:
        """As `ServiceProvider.read_response`."""
        try:
            parsed = self._client.parse_authn_request_response(
                response, BINDING_HTTP_POST, outstanding={request_id: "/"}
            )
            if not isinstance(parsed, AuthnResponse) or parsed.name_id is None:
                raise SAMLError("it asserts nobody")
            self._client.users.remove_person(parsed.name_id)
            return self._read(parsed)
        except Exception as error:  # the library raises whatever it likes, and a response is anybody's
            raise Refused(
                Reason.PROVIDER_FAILED, f"the SAML response is refused: {type(error).__name__}: {error}"
            ) from None

    def metadata(self) -> bytes:
        """As `ServiceProvider.metadata`."""
        return bytes(create_metadata_string(None, config=self._config))

    def _read(self, parsed: AuthnResponse) -> Assertion:
        if parsed.issuer() != self._idp:
            raise SAMLError(f"it is of {parsed.issuer()}")
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
        return Assertion(
            assertion_id=str(assertion.id),
            expires=max(ends) + SLACK_SECONDS,
            persistent_name=str(name.text) if name.format == NAMEID_FORMAT_PERSISTENT and name.text else None,
            attributes=attributes,
        )


def complete_settings(settings: Mapping[str, Any], base_url: str, folder: Path) -> dict[str, Any]:
    """The settings, with what is left out, and with what nobody may change."""
    service = dict(_mapping(settings.get("service")))
    own = dict(_mapping(service.get("sp")))
    endpoints = {
        "assertion_consumer_service": [(base_url + RESPONSE_PATH, BINDING_HTTP_POST)],
        **_mapping(own.get("endpoints")),
    }
    provider = {
        "required_attributes": ["uid"],
        "optional_attributes": ["mail", "surname", "givenName", "displayName"],
        "want_response_signed": False,
        **own,
        "endpoints": endpoints,
        "want_assertions_signed": True,
        "allow_unsolicited": False,
    }
    metadata = dict(_mapping(settings.get("metadata")))
    if isinstance(metadata.get("local"), list):
        metadata["local"] = [str(folder / str(path)) for path in metadata["local"]]
    return {
        "entityid": base_url + METADATA_PATH,
        "allow_unknown_attributes": True,
        "accepted_time_diff": SLACK_SECONDS,
        **settings,
        "metadata": metadata,
        "service": {**service, "sp": provider},
    }


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
