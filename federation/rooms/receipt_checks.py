"""The checks on receipt of an event, in the order of the specification.

The checks read their inputs from `CheckSources`. An input is read only if no previous check has
refused the event. The authorization rules are in `federation.protocol.event_auth`. Our own events
are checked against the same rules (see `build.py`).

spec: server-server-api#checks-performed-on-receipt-of-a-pdu
"""

from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from typing import Any, Protocol

import msgspec

from federation.protocol.auth_rules import AuthError, Rule
from federation.protocol.errors import BadEvent, Forbidden, MatrixError
from federation.protocol.event_auth import auth_events_needed, check_auth, check_auth_events
from federation.protocol.event_signing import is_content_hash_valid, required_signers
from federation.protocol.events import Event, StateKey, parse_event
from federation.protocol.ids import EventID, RoomID, ServerName
from federation.protocol.redaction import redact
from federation.protocol.room_versions import RoomVersion
from federation.rooms.snapshot import CREATE


class Verdict(Enum):
    """The result of the checks."""

    DROP = "drop"
    """It is not a valid event of this room, and is not stored."""
    REDACT = "redact"
    """Accepted without its content, which does not match the hash that its sender signed."""
    REJECT = "reject"
    """Stored, so that events that build on it can be placed; without effect, and never shown."""
    SOFT_FAIL = "soft_fail"
    """Allowed at its place but not by the current state: not shown, and our events do not follow
    it."""
    ACCEPT = "accept"


REFUSED_BY_POLICY = Forbidden("The policy server of this room refused the event")
SHOWN = frozenset({Verdict.ACCEPT, Verdict.REDACT})
"""The verdicts that let an event into the timeline."""


class ReceivedPdu:
    """A PDU from another server, parsed when first needed."""

    def __init__(
        self, *, version: RoomVersion, pdu: Mapping[str, Any], event: Event | None = None
    ) -> None:
        """`event`: given for stored events, which were checked before."""
        self._version = version
        self._pdu = pdu
        self._event = event
        self._hashed: Event | None = None
        self._error: MatrixError | None = None

    def read(self) -> Event:
        """Return the parsed event. Raises BadEvent, and other MatrixErrors of form."""
        if self._event is None:
            if self._error is None:
                try:
                    self._event = parse_event(self._version, self._pdu)
                    return self._event
                except MatrixError as error:
                    self._error = error
            raise self._error
        return self._event

    def hashed(self) -> Event:
        """Return `as_hashed` of the event, computed once."""
        if self._hashed is None:
            self._hashed = as_hashed(self.read())
        return self._hashed


class AuthEvents(msgspec.Struct, frozen=True):
    """The auth events of an event, all loaded."""

    events: Sequence[Event]
    """In the order of the event, whatever room they are from."""
    rejected: Collection[EventID]
    create: Event | None
    """The room's create event, if it is known."""


class CheckSources(Protocol):
    """Provides the inputs of the checks."""

    async def get_signers(self, event: Event) -> Collection[ServerName]:
        """Return the required signers of the event whose valid signatures it has."""

    async def get_auth_events(self, event: Event) -> AuthEvents:
        """Return the auth events of the event."""

    async def get_state_before(
        self, event: Event, keys: Collection[StateKey]
    ) -> Mapping[StateKey, Event] | None:
        """Return entries of the state before the event; None for an outlier without a place."""

    async def get_current_state(
        self, keys: Collection[StateKey]
    ) -> Mapping[StateKey, Event] | None:
        """Return entries of the current state.

        None if it is not checked: for outliers, for the past, and if it is the state before the
        event.
        """

    async def is_room_create(self, event: Event) -> bool:
        """Return whether a create event is the one that the room began with."""

    async def is_approved(self, event: Event) -> bool:
        """Return whether the room's policy server, if there is one, allows the event."""


class CheckResult(msgspec.Struct, frozen=True):
    """The result of the checks of an event."""

    verdict: Verdict
    event: Event | None
    """The event to use, redacted if its content does not match its hash; None if it is dropped."""
    error: MatrixError | None = None
    """The reason why it was not simply accepted."""


async def check_on_receipt(
    candidate: ReceivedPdu, room_id: RoomID, sources: CheckSources, *, in_part: bool = False
) -> CheckResult:
    """Run the checks of the specification, in its order and with its numbers.

    `in_part`: only a part of the state before the event is known. An event that this part does not
    allow is soft-failed, not rejected: others may cite it until the complete state decides.
    """
    # 1. It is a valid event of the room that it was sent for.
    try:
        event = candidate.read()
        if event.room_id != room_id:
            raise BadEvent("The event is of another room")
        required_signers(event)
    except MatrixError as error:
        return CheckResult(Verdict.DROP, None, error)

    # 2. It has the required signatures.
    signed_by = await sources.get_signers(event)
    try:
        check_signed(event, signed_by)
    except MatrixError as error:
        return CheckResult(Verdict.DROP, None, error)

    # 3. Its content matches its hash; else it is redacted before it is processed further.
    accepted: Verdict = Verdict.ACCEPT
    content_error: MatrixError | None = None
    hashed = candidate.hashed()
    if hashed is not event:
        accepted, content_error = (
            Verdict.REDACT,
            BadEvent("The content of the event does not match its hash"),
        )
        event = hashed

    # 4. Its auth events allow it.
    try:
        auth = await sources.get_auth_events(event)
        check_auth_events(event, auth.events, rejected=auth.rejected, create=auth.create)
        cited = {other.key: other for other in auth.events}
        if auth.create is not None:
            cited[CREATE] = auth.create
        _authorize(event, cited, signed_by)
    except AuthError as refusal:
        return CheckResult(Verdict.REJECT, event, refusal)

    # 5. The state before it allows it.
    keys = auth_events_needed(event.version, event) | {CREATE}
    before = await sources.get_state_before(event, keys)
    if before is None:
        return CheckResult(accepted, event, content_error)
    try:
        if event.type == CREATE.type and not await sources.is_room_create(event):
            raise AuthError(event.version, Rule.CREATE_PREV_EVENTS)  # the room has its create event
        if before != cited:  # mostly the cited events are the state before
            _authorize(event, before, signed_by)
    except AuthError as refusal:
        is_certain = not in_part or event.type == CREATE.type
        return CheckResult(Verdict.REJECT if is_certain else Verdict.SOFT_FAIL, event, refusal)

    # 6. The current state allows it.
    current = await sources.get_current_state(keys)
    if current is not None:
        try:
            _authorize(event, current, signed_by)
        except AuthError as refusal:
            return CheckResult(Verdict.SOFT_FAIL, event, refusal)

    # 7. The policy server that the room has now allows it, wherever it is placed.
    if not await sources.is_approved(event):
        return CheckResult(Verdict.SOFT_FAIL, event, REFUSED_BY_POLICY)
    return CheckResult(accepted, event, content_error)


def as_hashed(event: Event) -> Event:
    """Return the event, redacted if its content does not match its hash."""
    if is_content_hash_valid(event):
        return event
    return parse_event(event.version, redact(event.version, event.pdu), event_id=event.event_id)


def check_signed(event: Event, signed_by: Collection[ServerName]) -> None:
    """Check that the event has its required signatures. Raises Forbidden, BadEvent."""
    unsigned = required_signers(event).difference(signed_by)
    if unsigned:
        raise Forbidden(f"The event lacks a valid signature of {min(unsigned)}")


def _authorize(
    event: Event, state: Mapping[StateKey, Event], signed_by: Collection[ServerName]
) -> None:
    """Check the authorization rules. Raises AuthError."""
    create = event if event.type == CREATE.type else state.get(CREATE)
    if create is None:
        raise AuthError(
            event.version,
            Rule.ROOM_UNKNOWN if event.version.room_id_is_create_hash else Rule.AUTH_NO_CREATE,
        )
    check_auth(event, state, create=create, signed_by=signed_by)
