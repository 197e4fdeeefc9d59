"""Derives the server's capabilities and unstable features from its configuration."""

from federation.protocol.room_versions import ROOM_VERSIONS
from homeserver.config.configuration import Config
from homeserver.services.discovery.capabilities import Capabilities
from homeserver.services.discovery.unstable_features import UnstableFeatures
from homeserver.services.threepids.validation import ADD
from homeserver.wiring.email import EmailParts
from homeserver.wiring.login import LoginParts
from homeserver.wiring.oauth import OAuthParts
from homeserver.wiring.profiles import fixed_profile_fields
from homeserver.wiring.room_services import ENCRYPTED_PRESETS


def make_capabilities(
    config: Config, login: LoginParts, email: EmailParts, oauth: OAuthParts
) -> tuple[Capabilities, UnstableFeatures]:
    """Return the capabilities and the unstable features that clients may use."""
    return (
        Capabilities(
            default_room_version=ROOM_VERSIONS[config.rooms.default_room_version],
            passwords_can_change=bool(config.sessions.password_config.enabled),
            fixed_profile_fields=fixed_profile_fields(config),
            rooms_forgotten_on_leave=config.rooms.forget_rooms_on_leave,
            threepid_changes=(email.outbox is not None and config.mail.enable_3pid_changes)
            or login.phones.supports_purpose(ADD),
            login_tokens=config.sessions.login_via_existing_session.enabled,
            login_tokens_confirmed=config.sessions.login_via_existing_session.require_ui_auth,
            max_delay_ms=config.rooms.max_event_delay_duration,
            url_previews=config.previews.url_preview_enabled,
        ),
        UnstableFeatures(
            delayed_events=config.rooms.max_event_delay_duration is not None,
            older_qr_codes=config.sessions.oauth.qr_code == "everybody"
            and oauth.metadata.document is not None,
            encrypted_presets=ENCRYPTED_PRESETS[
                config.rooms.encryption_enabled_by_default_for_room_type
            ],
            retention=config.rooms.retention.enabled,
        ),
    )
