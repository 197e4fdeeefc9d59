"""Files that administrators choose by whose they are, where they are shown, when they came and how
large they are, and what is done with them all.

What `GET` lists with such a choice is what the others act on, a page at a time.
"""

from typing import Any, Final, Literal

import msgspec

from federation.protocol.errors import InvalidParam
from federation.protocol.ids import parse_room_id, parse_server_name, parse_user_id
from homeserver.admin.media import shown_copy, shown_upload
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.services.media.administration import Acted, MediaAdministration
from homeserver.services.media.repository import MEDIA_ID
from storage.media.content_uris import MediaAddress
from storage.media.lists import Wished
from storage.media.remote_media import RemoteMediaRow

_OURS: Final = "/_mahalla/admin/v1/media"
MOST: Final = 10_000
"""Files in one list."""
MOST_AT_ONCE: Final = 1000
"""Files with which something is done in one request."""
LATEST: Final = 2**53 - 1
"""No time, and no size, is beyond it."""


class Choice(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which files. Times are milliseconds since 1970, sizes bytes. A name that is not known is
    refused: what was meant by it would be left out."""

    of: Literal["local", "remote"] = "local"
    """Files of this server's users, or copies of other servers' files."""
    user_id: str | None = None
    room_id: str | None = None
    only_in_room: bool = False
    """Of what the room shows: only what nothing else shows."""
    server_name: str | None = None
    from_ts: int | None = None
    until_ts: int | None = None
    size_gt: int | None = None
    quarantined: bool | None = None
    protected: bool | None = None
    after: str = ""
    """The `next_token` of the page before."""
    limit: int = 100


@endpoint("GET", _OURS, auth=Auth.ADMIN)
async def get_chosen_media(
    media: MediaAdministration,
    *,
    of: Literal["local", "remote"] = "local",
    user_id: str | None = None,
    room_id: str | None = None,
    only_in_room: bool = False,
    server_name: str | None = None,
    from_ts: int | None = None,
    until_ts: int | None = None,
    size_gt: int | None = None,
    quarantined: bool | None = None,
    protected: bool | None = None,
    after: str = "",
    limit: int = 100,
) -> dict[str, Any]:
    """What is chosen, in the order of their addresses."""
    choice = Choice(
        of=of,
        user_id=user_id,
        room_id=room_id,
        only_in_room=only_in_room,
        server_name=server_name,
        from_ts=from_ts,
        until_ts=until_ts,
        size_gt=size_gt,
        quarantined=quarantined,
        protected=protected,
        after=after,
        limit=limit,
    )
    found = await media.find_files(_wished(choice), _after(choice, MOST), limit, own=of == "local")
    scans = await media.get_scans(found)
    answer: dict[str, Any] = {
        "media": [
            shown_copy(row, scans) if isinstance(row, RemoteMediaRow) else shown_upload(row, scans)
            for row in found
        ]
    }
    if len(found) == limit:
        answer["next_token"] = _token(media.address_of(found[-1]))
    return answer


@endpoint("POST", f"{_OURS}/delete", auth=Auth.ADMIN)
async def delete_chosen_media(
    media: MediaAdministration, caller: Requester, *, body: Choice
) -> dict[str, Any]:
    """Delete them. What is held back or protected stays, unless the choice is of just that."""
    wished, after = _acted_on(body)
    acted = await media.do_delete_chosen(
        wished, after, body.limit, caller.user_id, own=body.of == "local"
    )
    return _shown_act(acted)


@endpoint("POST", f"{_OURS}/quarantine", auth=Auth.ADMIN)
async def quarantine_chosen_media(
    media: MediaAdministration, caller: Requester, *, body: Choice
) -> dict[str, Any]:
    """Hold them back, and all that have the same bytes, but for those that are protected."""
    wished, after = _acted_on(body)
    acted = await media.do_hold_chosen(
        wished, after, body.limit, caller.user_id, own=body.of == "local"
    )
    return _shown_act(acted)


@endpoint("POST", f"{_OURS}/unquarantine", auth=Auth.ADMIN)
async def unquarantine_chosen_media(media: MediaAdministration, *, body: Choice) -> dict[str, Any]:
    """Give them free, and all that have the same bytes."""
    wished, after = _acted_on(body)
    return _shown_act(await media.do_free_chosen(wished, after, body.limit, own=body.of == "local"))


@endpoint("POST", f"{_OURS}/protect", auth=Auth.ADMIN)
async def protect_chosen_media(media: MediaAdministration, *, body: Choice) -> dict[str, Any]:
    """Files of this server are not to be held back, nor to go by themselves."""
    return await _protect(media, body, protected=True)


@endpoint("POST", f"{_OURS}/unprotect", auth=Auth.ADMIN)
async def unprotect_chosen_media(media: MediaAdministration, *, body: Choice) -> dict[str, Any]:
    """They may be, again."""
    return await _protect(media, body, protected=False)


async def _protect(
    media: MediaAdministration, choice: Choice, *, protected: bool
) -> dict[str, Any]:
    wished, after = _acted_on(choice)
    if choice.of == "remote":
        raise InvalidParam(
            "Copies of other servers' files cannot be protected: they are fetched again"
        )
    return _shown_act(
        await media.do_protect_chosen(wished, after, choice.limit, protected=protected)
    )


def _acted_on(choice: Choice) -> tuple[Wished, MediaAddress]:
    """Which files, and the address after which they begin. Raises InvalidParam."""
    return _wished(choice), _after(choice, MOST_AT_ONCE)


def _wished(choice: Choice) -> Wished:
    for name in ("from_ts", "until_ts", "size_gt"):
        number = getattr(choice, name)
        if number is not None and not -1 <= number <= LATEST:
            raise InvalidParam(f"{name} must be from -1 to {LATEST}")
    if choice.of == "remote" and (choice.user_id is not None or choice.protected):
        raise InvalidParam(
            "Copies of other servers' files have no user_id here, and are not protected"
        )
    if choice.of == "local" and choice.server_name is not None:
        raise InvalidParam("server_name is for of=remote")
    if choice.only_in_room and choice.room_id is None:
        raise InvalidParam("only_in_room wants a room_id")
    return Wished(
        from_ms=choice.from_ts,
        until_ms=choice.until_ts,
        larger_than=choice.size_gt,
        held=choice.quarantined,
        protected=choice.protected,
        user_id=None if choice.user_id is None else parse_user_id(choice.user_id),
        origin=None if choice.server_name is None else parse_server_name(choice.server_name),
        room_id=None if choice.room_id is None else parse_room_id(choice.room_id),
        only_there=choice.only_in_room,
    )


def _after(choice: Choice, most: int) -> MediaAddress:
    if not 0 < choice.limit <= most:
        raise InvalidParam(f"limit must be from 1 to {most}")
    if not choice.after:
        return MediaAddress("", "")
    origin, _, media_id = choice.after.partition("/")
    if not MEDIA_ID.fullmatch(media_id):
        raise InvalidParam("after is not a token that was given out")
    return MediaAddress(parse_server_name(origin), media_id)


def _token(address: MediaAddress) -> str:
    return f"{address.origin}/{address.media_id}"


def _shown_act(acted: Acted) -> dict[str, Any]:
    answer: dict[str, Any] = {"media": acted.addresses, "total": acted.count}
    if acted.last is not None:
        answer["next_token"] = _token(acted.last)
    return answer
