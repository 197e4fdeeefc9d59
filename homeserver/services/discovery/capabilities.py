"""What the people of this server can do. spec: client-server-api#capabilities-negotiation"""

from collections.abc import Mapping

import msgspec

from federation.protocol.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.api.requester import Requester
from homeserver.services.profiles.profiles import AVATAR_URL, DISPLAY_NAME
from homeserver.services.rooms.delayed_events import MOST_SCHEDULED


class Capabilities:
    """Answers from what the server was made with; encoded beforehand. `fixed_profile_fields`: those
    that people may not change themselves. `longest_delay_ms`: of delayed events, None where there
    are none. `login_tokens_confirmed`: who asks for one has to confirm that."""

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
        longest_delay_ms: int | None = None,
        url_previews: bool = False,
    ) -> None:
        profile_fields: dict[str, object] = {"enabled": True}
        if fixed_profile_fields:
            profile_fields["disallowed"] = sorted(fixed_profile_fields)
        people: dict[str, object] = {
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
        if longest_delay_ms is not None:
            limits = {"max_delay_ms": longest_delay_ms, "max_scheduled": MOST_SCHEDULED}
            people["org.matrix.msc4140.delayed_events"] = limits
        moderation = {"suspend": True, "lock": True}
        of_admins = {"m.account_moderation": moderation, "uk.timedout.msc4323": moderation}
        # what is to be confirmed, apps of the OAuth 2.0 API leave to the account page
        of_apps = {
            "m.change_password": {"enabled": False},
            "m.3pid_changes": {"enabled": False},
            "m.get_login_token": {"enabled": login_tokens and not login_tokens_confirmed},
        }
        self._bodies = {
            (is_admin, is_app): _encode(
                {**people, **(of_admins if is_admin else {}), **(of_apps if is_app else {})}
            )
            for is_admin in (False, True)
            for is_app in (False, True)
        }

    def body(self, caller: Requester) -> msgspec.Raw:
        """The answer, for the session that asks."""
        return self._bodies[caller.is_admin, caller.oauth_client is not None]


def _encode(capabilities: Mapping[str, object]) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode({"capabilities": capabilities}))
