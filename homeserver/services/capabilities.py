"""What the people of this server can do. spec: client-server-api#capabilities-negotiation"""

import msgspec

from federation.protocol.room_versions import ROOM_VERSIONS, RoomVersion
from homeserver.services.delayed_events import MOST_SCHEDULED
from homeserver.services.profiles import AVATAR_URL, DISPLAY_NAME


class Capabilities:
    """Answers from what the server was made with; encoded once. `fixed_profile_fields`: those that people may not
    change themselves. `longest_delay_ms`: of delayed events, None where there are none."""

    def __init__(
        self,
        *,
        default_room_version: RoomVersion,
        passwords_can_change: bool,
        fixed_profile_fields: frozenset[str] = frozenset(),
        rooms_forgotten_on_leave: bool = False,
        longest_delay_ms: int | None = None,
    ) -> None:
        profile_fields: dict[str, object] = {"enabled": True}
        if fixed_profile_fields:
            profile_fields["disallowed"] = sorted(fixed_profile_fields)
        further: dict[str, object] = {}
        if longest_delay_ms is not None:
            limits = {"max_delay_ms": longest_delay_ms, "max_scheduled": MOST_SCHEDULED}
            further["org.matrix.msc4140.delayed_events"] = limits
        self.body = msgspec.Raw(
            msgspec.json.encode(
                {
                    "capabilities": {
                        "m.change_password": {"enabled": passwords_can_change},
                        "m.room_versions": {
                            "default": default_room_version.identifier,
                            "available": dict.fromkeys(ROOM_VERSIONS, "stable"),
                        },
                        "m.profile_fields": profile_fields,
                        "uk.tcpip.msc4133.profile_fields": profile_fields,
                        "m.set_displayname": {"enabled": DISPLAY_NAME not in fixed_profile_fields},
                        "m.set_avatar_url": {"enabled": AVATAR_URL not in fixed_profile_fields},
                        "m.3pid_changes": {"enabled": False},
                        "m.get_login_token": {"enabled": False},
                        "m.forget_forced_upon_leave": {"enabled": rooms_forgotten_on_leave},
                        "org.matrix.msc4267.forget_forced_upon_leave": {"enabled": rooms_forgotten_on_leave},
                        **further,
                    }
                }
            )
        )
        """The answer."""
