"""Passes received EDUs to their handlers, by EDU type.

    EduReceivers(access=access, handlers={"m.typing": typing.receive})

Laws for a handler:
- The transaction is acknowledged after the handler has returned. So the handler makes its data
  durable before it returns; only typing and presence are not stored.
- A handler must not wait for other servers, because that would block all transactions of the
  sending server.
- A handler may receive the same EDU again, because an unacknowledged transaction is repeated.
- A handler ignores an invalid EDU, or raises a MatrixError. The other EDUs are processed, even if
  the handler fails with an unexpected error. Only LimitExceeded and DatabaseUnavailable end the
  transaction. The sending server repeats it later, so nothing is lost.
- Typing and receipts are filtered before their handler is called. Those of a room are dropped if
  the room's server ACL denies the sending server, or if the sending server is not in the room.

spec: server-server-api#edus, server-server-api#server-access-control-lists-acls
"""

from collections.abc import AsyncIterable, Awaitable, Callable, Mapping
from typing import Any

from twisted.logger import Logger

from federation.protocol.errors import LimitExceeded, MatrixError
from federation.protocol.ids import RoomID, ServerName
from federation.rooms.server_acl_checks import ServerACLChecks
from storage.engine.database import DatabaseUnavailable

EduHandler = Callable[[ServerName, Mapping[str, Any]], Awaitable[None]]
"""Processes the content of one EDU: (origin, content)."""

MAX_TYPE_CHARS = 255
MAX_ROOMS = 1000
"""Rooms in the receipts of one transaction."""
TYPING = "m.typing"
RECEIPT = "m.receipt"


class EduReceivers:
    """Dispatches EDUs to their handlers. Use this class only on the reactor thread."""

    def __init__(self, *, access: ServerACLChecks, handlers: Mapping[str, EduHandler]) -> None:
        """`handlers`: by type of EDU."""
        self._access = access
        self.handlers = handlers
        self._log = Logger()

    async def receive(self, origin: ServerName, edus: AsyncIterable[object]) -> None:
        """Process the EDUs of one transaction in order. Skip malformed ones and unknown types.

        Raises DatabaseUnavailable, and LimitExceeded if the server sends too much. The transaction
        then has to be repeated.
        """
        left = MAX_ROOMS
        async for edu in edus:
            if not isinstance(edu, dict):
                continue
            edu_type, content = edu.get("edu_type"), edu.get("content")
            if (
                not isinstance(edu_type, str)
                or len(edu_type) > MAX_TYPE_CHARS
                or not isinstance(content, dict)
            ):
                continue
            handler = self.handlers.get(edu_type)
            if handler is None:
                continue
            if edu_type == RECEIPT:
                content = dict(list(content.items())[:left])
            left -= len(content) if edu_type == RECEIPT else 0
            await self._dispatch(handler, origin, edu_type, content)

    async def _dispatch(
        self, handler: EduHandler, origin: ServerName, edu_type: str, content: Mapping[str, Any]
    ) -> None:
        try:
            allowed = await self._apply_acls(origin, edu_type, content)
            if allowed is not None:
                await handler(origin, allowed)
        except LimitExceeded:
            raise
        except MatrixError as error:
            self._log.debug(
                "the EDU {type} of {origin} is refused: {why}",
                type=edu_type,
                origin=origin,
                why=error.text,
            )
        except DatabaseUnavailable:
            raise
        except Exception:  # an unexpected error: repeating the EDU forever would block this server
            self._log.failure(
                "the EDU {type} of {origin} could not be processed",
                type=edu_type,
                origin=origin,
            )

    async def _apply_acls(
        self, origin: ServerName, edu_type: str, content: Mapping[str, Any]
    ) -> Mapping[str, Any] | None:
        """Return the allowed part of the content, or None."""
        if edu_type == TYPING:
            room_id = content.get("room_id")
            if not isinstance(room_id, str) or not await self._access.find_allowed(
                origin, [RoomID(room_id)]
            ):
                return None
            return content
        if edu_type == RECEIPT:
            allowed = await self._access.find_allowed(
                origin, [RoomID(room_id) for room_id in content]
            )
            return {
                room_id: receipts for room_id, receipts in content.items() if room_id in allowed
            }
        return content
