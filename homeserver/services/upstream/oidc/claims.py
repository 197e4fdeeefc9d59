"""Maps claims to an identity with the templates of the configuration.

Templates run in Jinja2's sandbox and see only the claims, as `user`. A missing claim renders as
empty text, and an empty result counts as absent.
"""

from collections.abc import Mapping
from typing import Any, Final

from jinja2 import ChainableUndefined, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from homeserver.config.upstream import ClaimTemplatesOptions
from homeserver.services.upstream.identity import (
    RefusalReason,
    SignInRefused,
    UpstreamIdentity,
    check_subject,
    clean_addresses,
    clean_name,
)

MAX_TEXT_LENGTH: Final = 4096


def _localpart_from_email(address: str) -> str:
    return address.rpartition("@")[0]


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(undefined=ChainableUndefined)
    environment.filters["localpart_from_email"] = _localpart_from_email
    return environment


class ClaimReader:
    """Reads the claims of one provider."""

    def __init__(self, templates: ClaimTemplatesOptions) -> None:
        """Raises jinja2.TemplateError for an invalid template."""
        self._config = templates
        environment = _environment()
        subject = templates.subject_template
        picture = templates.picture_template
        sources = {
            "subject": subject if subject is not None else _template_of(templates.subject_claim),
            "localpart": templates.localpart_template,
            "display_name": templates.display_name_template,
            "email": templates.email_template,
            "groups": templates.groups_template,
            "picture": picture if picture is not None else _template_of(templates.picture_claim),
        }
        self._templates = {
            name: environment.from_string(source)
            for name, source in sources.items()
            if source is not None
        }

    def read(self, claims: Mapping[str, Any], session: str | None) -> UpstreamIdentity:
        """Return the identity. Raises `SignInRefused` if there is no subject or a template
        fails."""
        texts = {name: self._render(name, claims) for name in self._templates if name != "groups"}
        email = texts.get("email") if claims.get("email_verified") is not False else None
        picture = texts.get("picture")
        return UpstreamIdentity(
            subject=check_subject(texts.get("subject") or ""),
            localpart=texts.get("localpart"),
            display_name=clean_name(texts.get("display_name")),
            emails=clean_addresses([email]),
            picture=picture if picture is not None and picture.startswith("https://") else None,
            session_id=session,
            confirm_localpart=self._config.confirm_localpart,
        )

    def with_groups(self, claims: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the claims, with `groups` from its template if there is one. Raises
        `SignInRefused`."""
        if "groups" not in self._templates:
            return claims
        lines = (self._render("groups", claims) or "").splitlines()
        return {**claims, "groups": [group for line in lines if (group := line.strip())]}

    def _render(self, name: str, claims: Mapping[str, Any]) -> str | None:
        try:
            text = self._templates[name].render(user=claims).strip()
        except (
            TemplateError,
            ArithmeticError,
            TypeError,
            ValueError,
            LookupError,
            AttributeError,
        ) as error:
            raise SignInRefused(
                RefusalReason.PROVIDER_FAILED,
                f"the template for {name} fails on the claims: {error}",
            ) from None
        # a cut list could end with the name of another group; the fetch already bounds the claims
        return (text if name == "groups" else text[:MAX_TEXT_LENGTH]) or None


def _template_of(claim: str | None) -> str | None:
    return None if claim is None else "{{ user[" + repr(claim) + "] }}"
