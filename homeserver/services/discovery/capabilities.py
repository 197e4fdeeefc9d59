"""The capabilities that this server announces to clients. spec:
client-server-api#capabilities-negotiation"""

from collections.abc import Mapping

import msgspec

from federation.protocol.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.api.requester import Requester
from homeserver.services.profiles.profiles import AVATAR_URL, DISPLAY_NAME
from homeserver.services.rooms.delayed_events import MAX_SCHEDULED


class Capabilities:
    """Builds and encodes the responses of GET capabilities, once at start.

    `fixed_profile_fields`: fields that users cannot change themselves. `max_delay_ms`: the
    maximum delay of delayed events, None if they are disabled. `login_tokens_confirmed`: whether a
    request for a login token has to be confirmed.
    """

    def __init__(
        self,
        *,
        default_room_version: RoomVersion,
        passwords_can_change: bool,
        fixed_profile_fields: frozenset[str] = frozenset(),
        rooms_forgotten_on_leave: bool = False,
        login_tokens: bool = False,
        login_tokens_confirmed: bool = False,
        threepid_changes: bool = False,
        max_delay_ms: int | None = None,
        url_previews: bool = False,
    ) -> None:
        profile_fields: dict[str, object] = {"enabled": True}
        if fixed_profile_fields:
            profile_fields["disallowed"] = sorted(fixed_profile_fields)
        of_all: dict[str, object] = {
            "m.change_password": {"enabled": passwords_can_change},
            "m.room_versions": {
                "default": default_room_version.identifier,
                "available": dict.fromkeys(ROOM_VERSIONS, "stable"),
            },
            "m.profile_fields": profile_fields,
            "uk.tcpip.msc4133.profile_fields": profile_fields,
            "m.set_displayname": {"enabled": DISPLAY_NAME not in fixed_profile_fields},
            "m.set_avatar_url": {"enabled": AVATAR_URL not in fixed_profile_fields},
            "m.3pid_changes": {"enabled": threepid_changes},
            "m.get_login_token": {"enabled": login_tokens},
            "io.element.msc4452.preview_url": {"enabled": url_previews},
            "m.forget_forced_upon_leave": {"enabled": rooms_forgotten_on_leave},
            "org.matrix.msc4267.forget_forced_upon_leave": {"enabled": rooms_forgotten_on_leave},
        }
        if max_delay_ms is not None:
            limits = {"max_delay_ms": max_delay_ms, "max_scheduled": MAX_SCHEDULED}
            of_all["org.matrix.msc4140.delayed_events"] = limits
        moderation = {"suspend": True, "lock": True}
        of_admins = {"m.account_moderation": moderation, "uk.timedout.msc4323": moderation}
        # OAuth 2.0 clients leave operations that need confirmation to the account page
        of_oauth = {
            "m.change_password": {"enabled": False},
            "m.3pid_changes": {"enabled": False},
            "m.get_login_token": {"enabled": login_tokens and not login_tokens_confirmed},
        }
        self._bodies = {
            (is_admin, is_oauth): _encode(
                {**of_all, **(of_admins if is_admin else {}), **(of_oauth if is_oauth else {})}
            )
            for is_admin in (False, True)
            for is_oauth in (False, True)
        }

    def body(self, caller: Requester) -> msgspec.Raw:
        """Return the response for the caller's session."""
        return self._bodies[caller.is_admin, caller.oauth_client is not None]


def _encode(capabilities: Mapping[str, object]) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode({"capabilities": capabilities}))
