"""Signs in users with a Central Authentication Service (CAS): redirects there and validates the
ticket that the browser brings back.

spec: CAS Protocol 3.0 Specification, sections 2.1 and 2.5
"""

from collections.abc import Mapping
from typing import Final
from urllib.parse import urlencode
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring
from twisted.internet.interfaces import IReactorTime

from homeserver.config.upstream import AttributeRequirementOptions, CASOptions
from homeserver.services.upstream.identity import (
    ProviderInfo,
    ProviderRedirect,
    RefusalReason,
    SignInRefused,
    UpstreamIdentity,
    check_reauthentication,
    check_requirements,
    check_subject,
    clean_name,
    reauthentication_state,
)
from homeserver.services.upstream.login_flows import SignInFlow
from homeserver.services.upstream.provider_http import ProviderHTTP

TICKET_PATH: Final = "_matrix/client/v3/login/cas/ticket"
PROVIDER_ID: Final = "cas"
MAX_TICKET_LENGTH: Final = 512
_NAMESPACE: Final = "{http://www.yale.edu/tp/cas}"
_DOCUMENTED_ATTRIBUTES: Final = f"{_NAMESPACE}attributes"


class CASProvider:
    """The CAS server as an identity provider."""

    def __init__(
        self, *, clock: IReactorTime, documents: ProviderHTTP, config: CASOptions, base_url: str
    ) -> None:
        """`base_url` ends with a slash."""
        self._clock = clock
        self._documents = documents
        self._config = config
        self._server = (config.server_url or "").rstrip("/")
        self._callback = base_url + TICKET_PATH
        self._requirements = [
            AttributeRequirementOptions(attribute=name, value=value)
            for name, value in config.required_attributes.items()
        ]
        self.info = ProviderInfo(
            PROVIDER_ID,
            config.idp_name,
            config.idp_icon,
            config.idp_brand,
            config.allow_existing_users,
            config.enable_registration,
        )

    async def begin_sign_in(self, flow_id: str, *, reauthenticate: bool) -> ProviderRedirect:
        """Implement `UpstreamProvider.begin_sign_in`."""
        query = {"service": self._service(flow_id), **({"renew": "true"} if reauthenticate else {})}
        return ProviderRedirect(
            f"{self._server}/login?{urlencode(query)}",
            reauthentication_state(again=reauthenticate, now=self._clock.seconds()),
        )

    async def identify(self, flow_id: str, flow: SignInFlow, ticket: str) -> UpstreamIdentity:
        """Validate a ticket and return its owner. The ticket is bound to a service URL, which
        contains the flow ID, and to `renew`. Raises `SignInRefused`."""
        if not ticket or len(ticket) > MAX_TICKET_LENGTH:
            raise SignInRefused(RefusalReason.CANCELLED, "the callback has no ticket")
        path = "p3/serviceValidate" if self._config.protocol_version != 2 else "serviceValidate"
        # sent with `renew`, CAS refuses a ticket that it issued without a new authentication
        authenticated_ts = check_reauthentication(
            flow.provider_state, None, self._clock.seconds(), requires_time=False
        )
        renew = {} if authenticated_ts is None else {"renew": "true"}
        query = urlencode({"service": self._service(flow_id), "ticket": ticket, **renew})
        name, attributes = parse_validation_response(
            await self._documents.get_bytes(f"{self._server}/{path}?{query}")
        )
        subject = check_subject(name)
        check_requirements(self._requirements, attributes, PROVIDER_ID, subject)
        names = attributes.get(self._config.displayname_attribute or "", [])
        return UpstreamIdentity(
            subject=subject,
            localpart=self._localpart(name),
            display_name=clean_name(names[0]) if names else None,
            authenticated_ts=authenticated_ts,
        )

    def _localpart(self, name: str) -> str | None:
        if not name.isdigit():
            return name
        return self._config.numeric_ids_prefix + name if self._config.allow_numeric_ids else None

    def _service(self, flow_id: str) -> str:
        return f"{self._callback}?{urlencode({'flow': flow_id})}"


def parse_validation_response(body: bytes) -> tuple[str, Mapping[str, list[str]]]:
    """Return the user and the attributes of a validation response; servers use two forms of
    attributes. Raises `SignInRefused`."""
    try:
        root = fromstring(body, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise SignInRefused(
            RefusalReason.PROVIDER_FAILED, f"CAS returned invalid XML: {error}"
        ) from None
    success = root.find(f"{_NAMESPACE}authenticationSuccess")
    user = None if success is None else success.find(f"{_NAMESPACE}user")
    if (
        root.tag != f"{_NAMESPACE}serviceResponse"
        or success is None
        or user is None
        or not (user.text or "").strip()
    ):
        failure = root.find(f"{_NAMESPACE}authenticationFailure")
        code = "" if failure is None else failure.get("code", "")
        raise SignInRefused(RefusalReason.PROVIDER_FAILED, f"CAS refuses the ticket: {code[:100]}")
    attributes: dict[str, list[str]] = {}
    for holder in success.iter(_DOCUMENTED_ATTRIBUTES):
        for each in holder:
            name, value = _attribute(each)
            attributes.setdefault(name, []).append(value)
    return (user.text or "").strip(), attributes


def _attribute(element: Element) -> tuple[str, str]:
    """Read `<cas:mail>x</cas:mail>`, or `<cas:attribute name="mail" value="x"/>` of older
    servers."""
    if element.tag == f"{_NAMESPACE}attribute" and "name" in element.attrib:
        return element.attrib["name"], element.attrib.get("value", "")
    return element.tag.removeprefix(_NAMESPACE), (element.text or "").strip()
