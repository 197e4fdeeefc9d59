"""Options about rooms: how they are made, who finds them, what of people is shown."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from federation.protocol.room_versions import DEFAULT_ROOM_VERSION, ROOM_VERSIONS
from homeserver.config.option import JSON, Duration, Size, option, section
from homeserver.config.retention import Retention


def _check_room_version(version: str) -> str | None:
    if version in ROOM_VERSIONS:
        return None
    return f"must be one of {', '.join(ROOM_VERSIONS)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rooms:
    """How rooms are made, and who finds them."""

    default_room_version: str = option(
        DEFAULT_ROOM_VERSION.identifier,
        "The version of new rooms, when their maker names none.",
        check=_check_room_version,
    )
    encryption_enabled_by_default_for_room_type: Literal["off", "invite", "all"] = option(
        "off",
        "Which new rooms are encrypted although their makers did not ask: none, those for invited people, or all.",
    )
    default_power_level_content_override: Mapping[str, JSON] = option(
        {},
        "Power levels of new rooms, by preset, that differ from the usual ones.",
        example="{public_chat: {events: {m.room.name: 100}}}",
    )
    rooms_federate_by_default: bool = option(
        True,
        "Whether people of other servers can join new rooms; with `false` only those whose makers ask for it "
        "(`m.federate`) or invite such people at once. It cannot be changed for a room that is there.",
    )
    allow_public_rooms_without_auth: bool = option(
        False, "Whether the room directory can be read without an account."
    )
    allow_public_rooms_over_federation: bool = option(
        False, "Whether other servers can read the room directory."
    )
    enable_room_list_search: bool = option(
        True, "Whether there is a room directory; without, it is shown empty."
    )
    block_non_admin_invites: bool = option(
        False, "Whether only administrators of the server may invite."
    )
    require_membership_for_aliases: bool = option(
        True, "Whether only members of a room may give it an alias."
    )
    forget_rooms_on_leave: bool = option(
        False, "Whether a room that a user leaves, or is put out of, is forgotten at once."
    )
    max_event_delay_duration: Duration | None = option(
        Duration(86_400_000),
        "How far ahead people may schedule events, which calls need; `null`: not at all.",
        minimum=1000,
    )
    filter_timeline_limit: int = option(
        100,
        "The most events of a room in one answer to /sync or sliding sync, whatever the client asks for; -1: no bound.",
        minimum=-1,
    )
    retention: Retention = section(
        Retention, "How long messages are kept; see docs/operators/retention.md."
    )
    forgotten_room_retention_period: Duration | None = option(
        None,
        "How long after the last user of this server has forgotten a room its messages are deleted for good; without it, never.",
        minimum=0,
        example="28d",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """Who is there."""

    enabled: Literal[True, False, "untracked"] = option(
        True, "Whether people see who is online; untracked: only of those on other servers."
    )
    include_offline_users_on_sync: bool = option(
        False, "Whether a first /sync names those too who are offline; dear in big rooms."
    )
    last_active_granularity: Duration = option(
        Duration(60_000), "How long one counts as active just now."
    )
    sync_online_timeout: Duration = option(
        Duration(30_000), "How long after the last /sync one is offline."
    )
    idle_timeout: Duration = option(
        Duration(300_000), "How long without activity makes one unavailable."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class People:
    """What is shown of people, and to whom."""

    presence: Presence = section(Presence, "Presence: who is online.")
    max_account_data_entries: int | None = option(
        50_000,
        "How many entries of account data one user may keep, deleted ones counted; clients keep a few of each room. `null`: no "
        "bound.",
        minimum=100,
    )
    max_account_data_size: Size | None = option(
        Size(20 * 1024 * 1024),
        "How much account data one user may keep in all; `null`: no bound.",
        minimum=65536,
        example="20M",
    )
    require_auth_for_profile_requests: bool = option(
        False, "Whether profiles are shown only to people with an account."
    )
    limit_profile_requests_to_users_who_share_rooms: bool = option(
        False, "Whether profiles are shown only to people who are in a room with that user."
    )
    include_profile_data_on_invite: bool = option(
        True, "Whether an invitation carries the invited user's name and picture."
    )
