"""Options for rooms, presence and profiles."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from federation.protocol.room_versions import DEFAULT_ROOM_VERSION, ROOM_VERSIONS
from homeserver.config.option import JSON, Duration, Size, option, section
from homeserver.config.retention import RetentionOptions


def _check_room_version(version: str) -> str | None:
    if version in ROOM_VERSIONS:
        return None
    return f"must be one of {', '.join(ROOM_VERSIONS)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomOptions:
    """Rooms."""

    default_room_version: str = option(
        DEFAULT_ROOM_VERSION.identifier,
        "The version of new rooms, if their creator names none.",
        check=_check_room_version,
    )
    encryption_enabled_by_default_for_room_type: Literal["off", "invite", "all"] = option(
        "off",
        "The new rooms that are encrypted even if their creators did not request it: none "
        "(`off`), rooms that only invited people can join, or all.",
    )
    default_power_level_content_override: Mapping[str, JSON] = option(
        {},
        "Power levels of new rooms, by preset, that differ from the usual ones.",
        example="{public_chat: {events: {m.room.name: 100}}}",
    )
    rooms_federate_by_default: bool = option(
        True,
        "Lets people of other servers join new rooms. With `false`, a new room is open to them "
        "only if its creator requests it (`m.federate`) or invites remote users when creating "
        "it. This cannot be changed for an existing room.",
    )
    allow_public_rooms_without_auth: bool = option(
        False, "Shows the room directory without an account."
    )
    allow_public_rooms_over_federation: bool = option(
        False, "Shows the room directory to other servers."
    )
    enable_room_list_search: bool = option(
        True, "Offers a room directory. Without it, the directory is empty."
    )
    block_non_admin_invites: bool = option(False, "Lets only administrators of the server invite.")
    require_membership_for_aliases: bool = option(
        True, "Lets only members of a room create aliases for it."
    )
    forget_rooms_on_leave: bool = option(
        False, "Forgets a room as soon as a user leaves it or is removed."
    )
    max_event_delay_duration: Duration | None = option(
        Duration(86_400_000),
        "The longest delay of delayed events, which calls need. `null`: delayed events are not "
        "allowed.",
        minimum=1000,
    )
    filter_timeline_limit: int = option(
        100,
        "The maximum number of events of a room in one response to /sync or sliding sync, even "
        "if the client requests more. -1: no limit.",
        minimum=-1,
    )
    retention: RetentionOptions = section(
        RetentionOptions, "Deletion of messages by age; see docs/operators/retention.md."
    )
    forgotten_room_retention_period: Duration | None = option(
        None,
        "When the last user of this server has forgotten a room, its messages are permanently "
        "deleted after this time. `null`: never.",
        minimum=0,
        example="28d",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PresenceOptions:
    """Presence: who is online."""

    enabled: Literal[True, False, "untracked"] = option(
        True, "Shows the presence of users. `untracked`: only that of users on other servers."
    )
    include_offline_users_on_sync: bool = option(
        False, "Includes offline users in an initial /sync. Expensive in large rooms."
    )
    last_active_granularity: Duration = option(
        Duration(60_000), "How long after an activity a user counts as currently active."
    )
    sync_online_timeout: Duration = option(
        Duration(30_000), "The time after the last /sync when a user counts as offline."
    )
    idle_timeout: Duration = option(
        Duration(300_000), "The time without activity after which a user counts as unavailable."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class UserOptions:
    """Presence, profiles and account data."""

    presence: PresenceOptions = section(PresenceOptions, "Presence: who is online.")
    max_account_data_entries: int | None = option(
        50_000,
        "The maximum number of account data entries of one user, including deleted ones. Clients "
        "store a few for each room. `null`: no limit.",
        minimum=100,
    )
    max_account_data_size: Size | None = option(
        Size(20 * 1024 * 1024),
        "The maximum size of one user's account data in total. `null`: no limit.",
        minimum=65536,
        example="20M",
    )
    require_auth_for_profile_requests: bool = option(
        False, "Shows profiles only to people with an account."
    )
    limit_profile_requests_to_users_who_share_rooms: bool = option(
        False, "Shows a profile only to people who share a room with its owner."
    )
    include_profile_data_on_invite: bool = option(
        True, "Includes the invited user's name and picture in an invitation."
    )
