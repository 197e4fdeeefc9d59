"""The authorization rules by name, and the number of each rule in the specification of a room
version.

The code that checks events refers to rules by name, because their numbers differ between room
versions. `AuthError.rule` is the number of the rule that refused an event, so that developers can
look it up. `_outline` lists the rules of a room version, nested as in the specification. The number
of a rule is its place in this list, such as 5.3.2.

spec: rooms/v1#authorisation-rules … rooms/v12#authorisation-rules
"""

from collections.abc import Iterator, Sequence
from enum import Enum, unique
from typing import TypeAlias

from federation.protocol.errors import Forbidden
from federation.protocol.room_versions import RoomVersion


@unique
class Rule(Enum):
    """A rule that refuses an event.

    The value is the error text if nothing more precise is known. Each is distinct.
    """

    CREATE_PREV_EVENTS = "The event that creates a room must be its first"
    CREATE_ROOM_ID = "The room id does not fit the event that creates the room"
    CREATE_ROOM_VERSION = "The room version is not known"
    CREATE_CREATOR = "The event that creates a room must name its creator"
    CREATE_ADDITIONAL_CREATORS = "The additional creators must be a list of user ids"
    ROOM_UNKNOWN = "The room id is not that of an accepted create event"
    AUTH_DUPLICATE = "Two of the auth events are for the same piece of state"
    AUTH_UNEXPECTED = "An auth event is not among those that such an event needs"
    AUTH_REJECTED = "An auth event was itself rejected"
    AUTH_NO_CREATE = "The create event is not among the auth events"
    AUTH_OTHER_ROOM = "An auth event belongs to another room"
    NOT_FEDERATED = "This room is only for users of the server that created it"
    ALIASES_STATE_KEY = "Aliases must be a state event"
    ALIASES_SERVER = "Aliases can only be set for the sender's own server"
    MEMBER_FORM = "A membership event must have a state key and a membership"
    MEMBER_AUTHORISER_SIGNATURE = "The server of the user who authorised the join has not signed it"
    JOIN_OF_ANOTHER = "You cannot join for someone else"
    JOIN_BANNED = "You are banned from this room"
    JOIN_AUTHORISER = "The join is not authorised by a member who may invite"
    JOIN_RULE = "The join rule of this room does not let you join"
    THIRD_PARTY_BANNED = "The invited user is banned from this room"
    THIRD_PARTY_SIGNED = "The third-party invite is not signed"
    THIRD_PARTY_FIELDS = "The signed part of the third-party invite lacks the user or the token"
    THIRD_PARTY_USER = "The third-party invite is for another user"
    THIRD_PARTY_TOKEN = "The room has no third-party invite with this token"
    THIRD_PARTY_SENDER = "The third-party invite was made by another user"
    THIRD_PARTY_SIGNATURE = "The third-party invite is not validly signed"
    INVITE_SENDER = "You must be in the room to invite to it"
    INVITE_TARGET = "The invited user is already in the room, or banned from it"
    INVITE_LEVEL = "Your power level is too low to invite"
    LEAVE_SELF = "You are not in this room, so you cannot leave it"
    LEAVE_SENDER = "You must be in the room to remove someone from it"
    UNBAN_LEVEL = "Your power level is too low to unban"
    KICK_LEVEL = "Your power level is too low to remove this user"
    BAN_SENDER = "You must be in the room to ban someone from it"
    BAN_LEVEL = "Your power level is too low to ban this user"
    KNOCK_RULE = "The join rule of this room does not let you knock"
    KNOCK_FOR_ANOTHER = "You cannot knock for someone else"
    KNOCK_MEMBERSHIP = "You are already in this room, invited to it or banned from it"
    MEMBERSHIP_UNKNOWN = "The membership is not known"
    SENDER_NOT_JOINED = "You are not in this room"
    THIRD_PARTY_INVITE_LEVEL = "Your power level is too low to invite people from elsewhere"
    REQUIRED_LEVEL = "Your power level is too low to send this event"
    STATE_KEY_OF_ANOTHER = "State that is named after a user can only be set by that user"
    POWER_LEVELS_FORM = "The default power levels must be integers"
    POWER_ENTRIES_FORM = "The power levels of events and notifications must be integers"
    POWER_USERS_FORM = "The power levels of users must be integers, by user id"
    POWER_CREATORS = "The creators of the room stand above all power levels and cannot be given one"
    POWER_LEVEL_CURRENT = "You cannot change a power level that is higher than your own"
    POWER_LEVEL_NEW = "You cannot set a power level higher than your own"
    POWER_ENTRY_CURRENT = "You cannot change the power level of an event that you may not send"
    POWER_ENTRY_NEW = "You cannot set the power level of an event higher than your own"
    POWER_USER_CURRENT = "You cannot change the power level of a user who is as powerful as you"
    POWER_USER_NEW = "You cannot give a user a power level higher than your own"
    REDACTION = "Your power level is too low to redact this event"


class AuthError(Forbidden):
    """An event that the rules refuse. `name` is the rule; `rule` is its number on the page of the
    room's version."""

    def __init__(self, version: RoomVersion, name: Rule, text: str | None = None) -> None:
        super().__init__(text or name.value)
        self.version = version
        self.name = name

    @property
    def rule(self) -> str:
        """Such as "5.3.2". Found only when asked for: most refusals are never read."""
        return rule_numbers(self.version)[self.name]


def rule_numbers(version: RoomVersion) -> dict[Rule, str]:
    """The number of each rule that refuses in this version, in the order of its page."""
    return dict(_number(_outline(version), ""))


_Outline: TypeAlias = Sequence["Rule | _Outline | None"]
"""None: a point that allows, that was removed, or that only leads to others; it takes a number, but
refuses nothing."""


def _number(outline: _Outline, prefix: str) -> Iterator[tuple[Rule, str]]:
    for position, point in enumerate(outline, start=1):
        if isinstance(point, Rule):
            yield point, f"{prefix}{position}"
        elif point is not None:
            yield from _number(point, f"{prefix}{position}.")


def _when(condition: bool, *points: "Rule | _Outline | None") -> _Outline:
    return points if condition else ()


def _outline(version: RoomVersion) -> _Outline:
    return [
        [
            Rule.CREATE_PREV_EVENTS,
            Rule.CREATE_ROOM_ID,
            Rule.CREATE_ROOM_VERSION,
            *_when(not version.creator_is_sender, Rule.CREATE_CREATOR),
            *_when(version.creators_privileged, Rule.CREATE_ADDITIONAL_CREATORS),
        ],
        *_when(version.room_id_is_create_hash, Rule.ROOM_UNKNOWN),
        [
            Rule.AUTH_DUPLICATE,
            Rule.AUTH_UNEXPECTED,
            Rule.AUTH_REJECTED,
            # The page of version 12 goes from 3 to 5 in its source.
            None if version.room_id_is_create_hash else Rule.AUTH_NO_CREATE,
            Rule.AUTH_OTHER_ROOM,
        ],
        Rule.NOT_FEDERATED,
        *_when(version.aliases_event_authorised, [Rule.ALIASES_STATE_KEY, Rule.ALIASES_SERVER]),
        _member_outline(version),
        Rule.SENDER_NOT_JOINED,
        [Rule.THIRD_PARTY_INVITE_LEVEL],
        Rule.REQUIRED_LEVEL,
        Rule.STATE_KEY_OF_ANOTHER,
        [
            *_when(version.integer_power_levels, Rule.POWER_LEVELS_FORM, Rule.POWER_ENTRIES_FORM),
            Rule.POWER_USERS_FORM,
            *_when(version.creators_privileged, Rule.POWER_CREATORS),
            None,
            [Rule.POWER_LEVEL_CURRENT, Rule.POWER_LEVEL_NEW],
            [Rule.POWER_ENTRY_CURRENT],
            [Rule.POWER_ENTRY_NEW],
            [Rule.POWER_USER_CURRENT],
            [Rule.POWER_USER_NEW],
        ],
        *_when(version.redaction_event_authorised, [None, None, Rule.REDACTION]),
    ]


def _member_outline(version: RoomVersion) -> _Outline:
    return [
        Rule.MEMBER_FORM,
        *_when(version.restricted_joins, [Rule.MEMBER_AUTHORISER_SIGNATURE]),
        [
            None,
            Rule.JOIN_OF_ANOTHER,
            Rule.JOIN_BANNED,
            None,
            *_when(version.restricted_joins, [None, Rule.JOIN_AUTHORISER]),
            None,
            Rule.JOIN_RULE,
        ],
        [
            [
                Rule.THIRD_PARTY_BANNED,
                Rule.THIRD_PARTY_SIGNED,
                Rule.THIRD_PARTY_FIELDS,
                Rule.THIRD_PARTY_USER,
                Rule.THIRD_PARTY_TOKEN,
                Rule.THIRD_PARTY_SENDER,
                None,
                Rule.THIRD_PARTY_SIGNATURE,
            ],
            Rule.INVITE_SENDER,
            Rule.INVITE_TARGET,
            None,
            Rule.INVITE_LEVEL,
        ],
        [Rule.LEAVE_SELF, Rule.LEAVE_SENDER, Rule.UNBAN_LEVEL, None, Rule.KICK_LEVEL],
        [Rule.BAN_SENDER, None, Rule.BAN_LEVEL],
        *_when(
            version.knocking, [Rule.KNOCK_RULE, Rule.KNOCK_FOR_ANOTHER, None, Rule.KNOCK_MEMBERSHIP]
        ),
        Rule.MEMBERSHIP_UNKNOWN,
    ]
