"""Get and change thread subscriptions. Proposals: MSC4306, MSC4308.

Each endpoint has an unstable path and the final path of the proposal. On unstable paths, the error
codes of MSC4306 have the prefix `IO.ELEMENT.MSC4306.`, because released clients expect it.
"""

from typing import Any, Final, Literal

import msgspec

from federation.api.request import RequestContext
from federation.protocol.ids import EventID, RoomID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.responses import EMPTY, Empty
from homeserver.services.rooms.thread_subscriptions import (
    MAX_CHANGES,
    ConflictingUnsubscription,
    NotInThread,
    ThreadSubscriptions,
)

_THREAD: Final = "/rooms/{room_id}/thread/{root}/subscription"
_UNSTABLE: Final = "/_matrix/client/unstable/io.element.msc4306"
PATHS: Final = ("/_matrix/client/v1" + _THREAD, _UNSTABLE + _THREAD)


class UnstableNotInThread(NotInThread):
    errcode = "IO.ELEMENT.MSC4306.M_NOT_IN_THREAD"


class UnstableConflictingUnsubscription(ConflictingUnsubscription):
    errcode = "IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION"


_UNSTABLE_ERRORS: Final = {
    NotInThread: UnstableNotInThread,
    ConflictingUnsubscription: UnstableConflictingUnsubscription,
}


class SubscriptionBody(msgspec.Struct, frozen=True):
    """The subscription request."""

    automatic: str | None = None
    """The event that made the client subscribe automatically; absent if the user subscribed."""


@endpoint("GET", *PATHS, auth=Auth.USER)
async def get_thread_subscription(
    subscriptions: ThreadSubscriptions, caller: Requester, *, room_id: RoomID, root: EventID
) -> dict[str, bool]:
    """Return the caller's subscription to a thread."""
    return await subscriptions.get(caller, room_id, root)


@endpoint(
    "PUT", *PATHS, auth=Auth.USER, limit=Limit.ACCOUNT_DATA, max_body=4096, while_suspended=True
)
async def put_thread_subscription(
    subscriptions: ThreadSubscriptions,
    caller: Requester,
    context: RequestContext,
    *,
    room_id: RoomID,
    root: EventID,
    body: SubscriptionBody = SubscriptionBody(),
) -> Empty:
    """Subscribe to a thread."""
    cause = None if body.automatic is None else EventID(body.automatic)
    try:
        await subscriptions.do_subscribe(caller, room_id, root, cause)
    except (NotInThread, ConflictingUnsubscription) as error:
        raise (
            _UNSTABLE_ERRORS[type(error)] if context.path.startswith(_UNSTABLE) else error
        ) from None
    return EMPTY


@endpoint("DELETE", *PATHS, auth=Auth.USER, limit=Limit.ACCOUNT_DATA, while_suspended=True)
async def delete_thread_subscription(
    subscriptions: ThreadSubscriptions, caller: Requester, *, room_id: RoomID, root: EventID
) -> Empty:
    """Unsubscribe from a thread."""
    await subscriptions.do_unsubscribe(caller, room_id, root)
    return EMPTY


@endpoint(
    "GET",
    "/_matrix/client/v1/thread_subscriptions",
    "/_matrix/client/unstable/io.element.msc4308/thread_subscriptions",
    auth=Auth.USER,
)
async def get_thread_subscriptions(
    subscriptions: ThreadSubscriptions,
    caller: Requester,
    *,
    dir: Literal["b"],
    from_: str | None = None,
    to: str | None = None,
    limit: int = MAX_CHANGES,
) -> dict[str, Any]:
    """Return older subscription changes, which sliding sync had no space for."""
    return await subscriptions.get_page(caller, from_, to, limit)
