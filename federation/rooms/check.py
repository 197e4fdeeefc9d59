"""The checks on receipt of an event, in the order of the specification: what becomes of what
another server sends.

Ask, then decide: what the checks need comes through `Sources`, asked for only when the checks
before have passed. The rules themselves are those of `federation.protocol.event_auth`, which our
own events pass too (see `build.py`).

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
    """What becomes of an event."""

    DROP = "drop"
    """It is no event of this room: nothing of it is kept."""
    REDACT = "redact"
    """Accepted without its content, since that is not what its sender signed."""
    REJECT = "reject"
    """Kept, so that what builds upon it can be placed; without effect, and shown to nobody."""
    SOFT_FAIL = "soft_fail"
    """Allowed where it stands but not by the present state: shown to nobody and not built upon by
    us."""
    ACCEPT = "accept"


REFUSED_BY_POLICY = Forbidden("The policy server of this room did not let the event pass")
SHOWN = frozenset({Verdict.ACCEPT, Verdict.REDACT})
"""The verdicts that let an event into the timeline."""


class Candidate:
    """A PDU from outside, read when first asked for."""

    def __init__(
        self, version: RoomVersion, pdu: Mapping[str, Any], event: Event | None = None
    ) -> None:
        """`event` is given for what we have stored, as far as it was checked then."""
        self._version = version
        self._pdu = pdu
        self._event = event
        self._hashed: Event | None = None
        self._error: MatrixError | None = None

    def read(self) -> Event:
        """The event. Raises BadEvent, and other MatrixErrors of form."""
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
        """As `as_hashed` of the event, found out once."""
        if self._hashed is None:
            self._hashed = as_hashed(self.read())
        return self._hashed


class AuthEvents(msgspec.Struct, frozen=True):
    """The auth events that an event names, all of them at hand."""

    events: Sequence[Event]
    """In the order of the event, whatever room they are of."""
    rejected: Collection[EventID]
    create: Event | None
    """The room's create event, where it is known."""


class Sources(Protocol):
    """Where the checks get what they need to know."""

    async def get_signers(self, event: Event) -> Collection[ServerName]:
        """Those of the event's required signers whose valid signatures it has."""

    async def get_auth_events(self, event: Event) -> AuthEvents:
        """The auth events that it names."""

    async def get_state_before(
        self, event: Event, keys: Collection[StateKey]
    ) -> Mapping[StateKey, Event] | None:
        """Entries of the state before the event; None for an outlier, whose place is not known."""

    async def get_current_state(
        self, keys: Collection[StateKey]
    ) -> Mapping[StateKey, Event] | None:
        """Entries of the present state; None where it has no say: for outliers, for the past, and
        where it is the state before the event."""

    async def is_room_create(self, event: Event) -> bool:
        """Whether a create event is the one that the room began with."""

    async def is_approved(self, event: Event) -> bool:
        """Whether the room's policy server, if it has one, lets the event pass."""


class Checked(msgspec.Struct, frozen=True):
    """The verdict on an event."""

    verdict: Verdict
    event: Event | None
    """The event to go on with, redacted where its content was not what its hash says; None when it
    is dropped."""
    error: MatrixError | None = None
    """Why it was not simply accepted."""


async def check_on_receipt(
    candidate: Candidate, room_id: RoomID, sources: Sources, *, in_part: bool = False
) -> Checked:
    """Run the checks of the specification, in its order and with its numbers.

    `in_part`: of the state before the event only a part is known. What that does not allow is not
    shown, and not refused for good either: others may cite it, until all of the state says what it
    is.
    """
    # 1. It is a valid event, and of the room that it came for.
    try:
        event = candidate.read()
        if event.room_id != room_id:
            raise BadEvent("The event is of another room")
        required_signers(event)
    except MatrixError as error:
        return Checked(Verdict.DROP, None, error)

    # 2. It is signed by those who must have signed it.
    signed_by = await sources.get_signers(event)
    try:
        check_signed(event, signed_by)
    except MatrixError as error:
        return Checked(Verdict.DROP, None, error)

    # 3. Its content is what was hashed; else it is redacted before it is processed further.
    accepted: Verdict = Verdict.ACCEPT
    flaw: MatrixError | None = None
    hashed = candidate.hashed()
    if hashed is not event:
        accepted, flaw = (
            Verdict.REDACT,
            BadEvent("The content of the event is not what its hash says"),
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
        return Checked(Verdict.REJECT, event, refusal)

    # 5. The state before it allows it.
    keys = auth_events_needed(event.version, event) | {CREATE}
    before = await sources.get_state_before(event, keys)
    if before is None:
        return Checked(accepted, event, flaw)
    try:
        if event.type == CREATE.type and not await sources.is_room_create(event):
            raise AuthError(event.version, Rule.CREATE_PREV_EVENTS)  # the room has its create event
        if before != cited:  # an honest event mostly cites what is so
            _authorize(event, before, signed_by)
    except AuthError as refusal:
        is_certain = not in_part or event.type == CREATE.type
        return Checked(Verdict.REJECT if is_certain else Verdict.SOFT_FAIL, event, refusal)

    # 6. The present state allows it.
    current = await sources.get_current_state(keys)
    if current is not None:
        try:
            _authorize(event, current, signed_by)
        except AuthError as refusal:
            return Checked(Verdict.SOFT_FAIL, event, refusal)

    # 7. The room's policy server lets it pass, wherever it stands: that which the room has now.
    if not await sources.is_approved(event):
        return Checked(Verdict.SOFT_FAIL, event, REFUSED_BY_POLICY)
    return Checked(accepted, event, flaw)


def as_hashed(event: Event) -> Event:
    """The event, or what is left of it where its content is not what its hash says."""
    if is_content_hash_valid(event):
        return event
    return parse_event(event.version, redact(event.version, event.pdu), event_id=event.event_id)


def check_signed(event: Event, signed_by: Collection[ServerName]) -> None:
    """Raises Forbidden, BadEvent."""
    unsigned = required_signers(event).difference(signed_by)
    if unsigned:
        raise Forbidden(f"The event lacks a valid signature of {min(unsigned)}")


def _authorize(
    event: Event, state: Mapping[StateKey, Event], signed_by: Collection[ServerName]
) -> None:
    """Raises AuthError."""
    create = event if event.type == CREATE.type else state.get(CREATE)
    if create is None:
        raise AuthError(
            event.version,
            Rule.ROOM_UNKNOWN if event.version.room_id_is_create_hash else Rule.AUTH_NO_CREATE,
        )
    check_auth(event, state, create=create, signed_by=signed_by)
