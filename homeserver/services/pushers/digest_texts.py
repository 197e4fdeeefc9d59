"""Texts of an e-mail about missed messages: names, bodies and links, in the user's language.

An edited message is shown with its latest text. An encrypted message is listed with its sender and
time, but without text. If the operator allows no content in e-mails, every message is listed in
this way.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from typing import Final
from urllib.parse import quote

from federation.protocol.ids import UserID
from federation.rooms.events import StoredEvent
from federation.rooms.joins.out_of_room import is_out_of_room
from homeserver.services.email.emails import Digest, DigestMessage, DigestRoom
from homeserver.services.pages.languages import Language
from homeserver.services.pushers.missed_messages import MissedMessages, MissedRoom
from homeserver.services.pushers.notification import ENCRYPTED
from homeserver.services.rooms.invited_rooms import InvitedRooms
from storage.rooms.memberships import MembershipRow, MembershipStore
from storage.rooms.summaries import RoomNaming, RoomSummaryStore

HEROES: Final = 3
MAX_BODY_CHARS: Final = 500
MAX_NAME_CHARS: Final = 100
MAX_SENDER_CHARS: Final = 255
"""The maximum length of a user ID."""
MATRIX_TO: Final = "https://matrix.to"


class DigestTexts:
    """Builds the texts. Use this class only on the reactor thread."""

    def __init__(
        self,
        *,
        memberships: MembershipStore,
        summaries: RoomSummaryStore,
        invited: InvitedRooms,
        server_name: str,
        client_url: str,
        with_content: bool,
    ) -> None:
        """`client_url`: the web client that links open. `with_content`: whether e-mails quote
        messages."""
        self._memberships = memberships
        self._summaries = summaries
        self._invited = invited
        self._server_name = server_name
        self._client_url = client_url.rstrip("/")
        self._with_content = with_content

    async def write(
        self,
        user_id: UserID,
        missed: MissedMessages,
        language: Language,
        app_name: str,
        unsubscribe_link: str,
        time_zone: tzinfo,
    ) -> Digest:
        """Return the content of the e-mail. Two queries, and one for the names in each room."""
        inside = [
            room.membership.room_nid for room in missed.rooms if not is_out_of_room(room.membership)
        ]
        namings = await self._summaries.get_namings(user_id, inside, HEROES)
        rooms = [
            await self._room(
                room, namings.get(room.membership.room_nid), language.gettext, time_zone
            )
            for room in missed.rooms
        ]
        _ = language.gettext
        return Digest(
            subject=f"[{app_name}] {_subject(rooms, _)}",
            greeting=_("You have not read this yet on %(server)s:") % {"server": self._server_name},
            rooms=rooms,
            more_rooms=_("Further rooms: %(count)s") % {"count": missed.further_rooms}
            if missed.further_rooms
            else "",
            footer=_(
                "You receive this e-mail because notifications by e-mail are switched on for your "
                "account."
            ),
            unsubscribe_link=unsubscribe_link,
            unsubscribe_text=_("Unsubscribe"),
        )

    async def _room(
        self,
        room: MissedRoom,
        naming: RoomNaming | None,
        _: Callable[[str], str],
        time_zone: tzinfo,
    ) -> DigestRoom:
        row = room.membership
        names: Mapping[str, MembershipRow] = {}
        if not is_out_of_room(row):
            senders = {event.event.sender for event in room.events}
            names = await self._memberships.get_memberships(row.room_nid, senders)
        name = _name_of(naming) or await self._invited_name(row)
        messages = [
            DigestMessage(
                sender=_sender(event, names),
                time=_time(event, time_zone),
                text=self._text(
                    event, room.edits.get(event.nid), _, is_invite=row.membership == "invite"
                ),
                link=self._link(
                    room.room_id, None if row.membership == "invite" else event.event.event_id
                ),
            )
            for event in room.events
        ]
        return DigestRoom(
            name=name,
            is_invite=row.membership == "invite",
            link=self._link(room.room_id, None),
            link_text=_("Open the room"),
            messages=messages,
            more_messages=_("Further messages: %(count)s") % {"count": room.further}
            if room.further
            else "",
        )

    async def _invited_name(self, row: MembershipRow) -> str | None:
        """Return the name of a room from the stripped state of the user's invite."""
        if row.membership != "invite":
            return None
        for event in await self._invited.get_stripped(row):
            if event.key == ("m.room.name", ""):
                name = event.content.get("name")
                return name[:MAX_NAME_CHARS] if isinstance(name, str) and name else None
        return None

    def _text(
        self,
        event: StoredEvent,
        edit: StoredEvent | None,
        _: Callable[[str], str],
        *,
        is_invite: bool,
    ) -> str:
        content, type = event.event.content, event.event.type
        new_content = None if edit is None else edit.event.content.get("m.new_content")
        if isinstance(new_content, Mapping):
            content = new_content  # spec: client-server-api#applying-mnew_content
        if is_invite:
            return _("You are invited to this room.")
        if type == ENCRYPTED:
            return _("Encrypted message")
        if type in ("m.call.invite", "m.rtc.notification", "org.matrix.msc4075.rtc.notification"):
            return _("Call")
        body = content.get("body")
        if (
            type not in ("m.room.message", "m.sticker")
            or not self._with_content
            or not isinstance(body, str)
        ):
            return _("New message")
        shown = body if len(body) <= MAX_BODY_CHARS else body[:MAX_BODY_CHARS] + " …"
        kind = _kind_of(content.get("msgtype"), _)
        return shown if kind is None else f"{kind}: {shown}"

    def _link(self, room_id: str, event_id: str | None) -> str:
        path = quote(room_id, safe="!:") + (
            "" if event_id is None else "/" + quote(event_id, safe="$:")
        )
        return (
            f"{self._client_url}/#/{path}"
            if self._client_url == MATRIX_TO
            else f"{self._client_url}/#/room/{path}"
        )


def _kind_of(msgtype: object, _: Callable[[str], str]) -> str | None:
    """Return the kind of a message that is more than its text, else None."""
    match msgtype:
        case "m.image":
            return _("Picture")
        case "m.video":
            return _("Video")
        case "m.audio":
            return _("Audio")
        case "m.file":
            return _("File")
        case "m.location":
            return _("Location")
        case _other:
            return None


def _subject(rooms: Sequence[DigestRoom], _: Callable[[str], str]) -> str:
    first = rooms[0]
    fields = {"person": first.messages[-1].sender, "room": first.name or ""}
    if len(rooms) > 1:
        fields["place"] = first.name or fields["person"]
        return _("New in %(place)s and elsewhere") % fields
    if first.is_invite:
        return (
            _("%(person)s invites you to %(room)s")
            if first.name
            else _("%(person)s invites you to a room")
        ) % fields
    people = {message.sender for message in first.messages}
    if len(people) == 1 and not first.more_messages:
        return (
            _("Message from %(person)s in %(room)s") if first.name else _("Message from %(person)s")
        ) % fields
    return (
        _("New messages in %(room)s") % fields
        if first.name
        else _("Message from %(person)s") % fields
    )


def _name_of(naming: RoomNaming | None) -> str | None:
    if naming is None:
        return None
    name = naming.name or naming.canonical_alias
    if not name:
        names = [hero.display_name or hero.user_id for hero in naming.heroes]
        name = ", ".join(names)
    return name[:MAX_NAME_CHARS] or None


def _sender(event: StoredEvent, names: Mapping[str, MembershipRow]) -> str:
    row = names.get(event.event.sender)
    # another server may give a name as long as an event
    return ((row.display_name if row is not None else None) or event.event.sender)[
        :MAX_SENDER_CHARS
    ]


def _time(event: StoredEvent, time_zone: tzinfo) -> str:
    try:
        when = datetime.fromtimestamp(event.event.origin_server_ts / 1000, UTC).astimezone(
            time_zone
        )
    except (OverflowError, ValueError, OSError):
        return ""  # the sender's timestamp is out of range
    return f"{when:%Y-%m-%d %H:%M} {when.tzname() or ''}".rstrip()
