"""Describes the differences between room versions: one frozen record for each version.

Each record copies the previous one and applies the changes of its version. Code reads a behaviour
from the record (`version.knocking`). It never compares versions: `tests/layout` fails if a module
does.

Versions 1 to 12 are stable in the specification: https://spec.matrix.org/v1.19/rooms/
"""

from enum import Enum
from typing import Final

import msgspec
from msgspec.structs import replace


class EventFormat(Enum):
    """The form of event ids and references.

    spec: rooms/v1#event-format, rooms/v3#event-format, rooms/v12#event-format
    """

    V1 = 1
    """`event_id` stands in the event; `prev_events` and `auth_events` are pairs of id and
    hashes."""
    V3 = 2
    """The id is the reference hash in standard unpadded base64; `prev_events` and `auth_events` are
    ids."""
    V4 = 3
    """As V3, in URL-safe base64."""
    V12 = 4
    """As V4; the create event has no `room_id`, and no event lists it among its `auth_events`."""


class StateResolution(Enum):
    """spec: rooms/v1#state-resolution, rooms/v2#state-resolution, rooms/v12#state-resolution"""

    V1 = "1"
    V2 = "2"
    V2_1 = "2.1"


class RedactionRules(msgspec.Struct, frozen=True):
    """The fields that redaction keeps besides the common core. spec: rooms/v11#redactions"""

    keeps_origin_membership_prev_state: bool
    """Top-level `origin`, `membership`, `prev_state` survive (versions 1 to 10)."""
    keeps_aliases: bool
    """`aliases` of m.room.aliases survive (versions 1 to 5)."""
    keeps_join_rule_allow: bool
    """`allow` of m.room.join_rules survives (from version 8)."""
    keeps_join_authorised_via: bool
    """`join_authorised_via_users_server` of m.room.member survives (from version 9)."""
    keeps_whole_create_content: bool
    """All of m.room.create survives (from version 11); before, only `creator`."""
    keeps_redacts_in_content: bool
    """`redacts` stands in, and survives in, the content of m.room.redaction (from version 11)."""
    keeps_invite_level: bool
    """`invite` of m.room.power_levels survives (from version 11)."""
    keeps_third_party_signed: bool
    """`third_party_invite.signed` of m.room.member survives (from version 11)."""


class RoomVersion(msgspec.Struct, frozen=True):
    """The behaviours of one room version."""

    identifier: str
    event_format: EventFormat
    state_resolution: StateResolution
    redaction: RedactionRules
    redaction_event_authorised: bool
    """Authorization has a rule of its own for m.room.redaction (versions 1 and 2). spec:
    rooms/v1#authorisation-rules 11"""
    aliases_event_authorised: bool
    """Authorization has a rule of its own for m.room.aliases (versions 1 to 5). spec:
    rooms/v1#authorisation-rules 4"""
    enforces_key_validity: bool
    """Signatures count only while the signing key was valid (from version 5). spec:
    rooms/v5#signing-key-validity-period"""
    strict_canonical_json: bool
    """Floats and integers beyond ±(2^53 - 1) are refused (from version 6). spec:
    rooms/v6#canonical-json"""
    limits_notification_levels: bool
    """`notifications` in m.room.power_levels is guarded by authorization (from version 6). spec:
    rooms/v6#authorisation-rules"""
    knocking: bool
    """Join rule `knock`, membership `knock` (from version 7). spec: rooms/v7"""
    restricted_joins: bool
    """Join rule `restricted` (from version 8). spec: rooms/v8"""
    knock_restricted: bool
    """Join rule `knock_restricted` (from version 10). spec: rooms/v10"""
    integer_power_levels: bool
    """Power levels are integers, never strings (from version 10). spec:
    rooms/v10#values-in-mroompower_levels-events-must-be-integers"""
    creator_is_sender: bool
    """The creator is the create event's sender, not its `content.creator` (from version 11). spec:
    rooms/v11#remove-the-creator-property-of-mroomcreate-events"""
    redacts_in_content: bool
    """A redaction names its target in `content.redacts` (from version 11). spec:
    rooms/v11#moving-the-redacts-property-of-mroomredaction-events-to-a-content-property"""
    room_id_is_create_hash: bool
    """The room id is the create event's id with `!`; the create event has no room_id (from version
    12). spec: rooms/v12#event-format"""
    creators_privileged: bool
    """Creators, `additional_creators` among them, stand above every power level (from version 12).
    spec: rooms/v12#authorisation-rules"""


V1: Final = RoomVersion(
    identifier="1",
    event_format=EventFormat.V1,
    state_resolution=StateResolution.V1,
    redaction=RedactionRules(
        keeps_origin_membership_prev_state=True,
        keeps_aliases=True,
        keeps_join_rule_allow=False,
        keeps_join_authorised_via=False,
        keeps_whole_create_content=False,
        keeps_redacts_in_content=False,
        keeps_invite_level=False,
        keeps_third_party_signed=False,
    ),
    redaction_event_authorised=True,
    aliases_event_authorised=True,
    enforces_key_validity=False,
    strict_canonical_json=False,
    limits_notification_levels=False,
    knocking=False,
    restricted_joins=False,
    knock_restricted=False,
    integer_power_levels=False,
    creator_is_sender=False,
    redacts_in_content=False,
    room_id_is_create_hash=False,
    creators_privileged=False,
)
V2: Final = replace(V1, identifier="2", state_resolution=StateResolution.V2)
V3: Final = replace(
    V2, identifier="3", event_format=EventFormat.V3, redaction_event_authorised=False
)
V4: Final = replace(V3, identifier="4", event_format=EventFormat.V4)
V5: Final = replace(V4, identifier="5", enforces_key_validity=True)
V6: Final = replace(
    V5,
    identifier="6",
    strict_canonical_json=True,
    limits_notification_levels=True,
    aliases_event_authorised=False,
    redaction=replace(V5.redaction, keeps_aliases=False),
)
V7: Final = replace(V6, identifier="7", knocking=True)
V8: Final = replace(
    V7,
    identifier="8",
    restricted_joins=True,
    redaction=replace(V7.redaction, keeps_join_rule_allow=True),
)
V9: Final = replace(
    V8, identifier="9", redaction=replace(V8.redaction, keeps_join_authorised_via=True)
)
V10: Final = replace(V9, identifier="10", integer_power_levels=True, knock_restricted=True)
V11: Final = replace(
    V10,
    identifier="11",
    creator_is_sender=True,
    redacts_in_content=True,
    redaction=replace(
        V10.redaction,
        keeps_origin_membership_prev_state=False,
        keeps_whole_create_content=True,
        keeps_redacts_in_content=True,
        keeps_invite_level=True,
        keeps_third_party_signed=True,
    ),
)
V12: Final = replace(
    V11,
    identifier="12",
    event_format=EventFormat.V12,
    state_resolution=StateResolution.V2_1,
    room_id_is_create_hash=True,
    creators_privileged=True,
)

ROOM_VERSIONS: Final[dict[str, RoomVersion]] = {
    version.identifier: version for version in (V1, V2, V3, V4, V5, V6, V7, V8, V9, V10, V11, V12)
}
"""Every known version by identifier. All are stable."""

DEFAULT_ROOM_VERSION: Final = V12
