"""What servers tell each other beside events (EDUs), and who takes it in, by type.

    EduReceivers(access, {"m.typing": typing.receive})

Laws for a handler:
- It is awaited before the transaction is acknowledged, so what it has to keep it keeps durably
  before it returns; and it does not wait for other servers, which would hold up everything that its
  sender sends.
- It can be given the same EDU again: a transaction that was not acknowledged is repeated.
- Whatever is wrong with an EDU it raises as a MatrixError, or ignores. Either way the other EDUs go
  on. LimitExceeded ends the transaction, which is repeated later: nothing of it is lost.
- Room ACLs have been applied: of what is told of rooms, those are gone that deny the sender, or
  that it is not in.

spec: server-server-api#edus, server-server-api#server-access-control-lists-acls
"""

from collections.abc import AsyncIterable, Awaitable, Callable, Mapping
from typing import Any

from twisted.logger import Logger

from federation.protocol.errors import LimitExceeded, MatrixError
from federation.protocol.ids import RoomID, ServerName
from federation.rooms.server_access import ServerAccess
from storage.engine.database import DatabaseUnavailable

EduHandler = Callable[[ServerName, Mapping[str, Any]], Awaitable[None]]
"""Takes in the content of one EDU of a server: (origin, content)."""

MAX_TYPE_CHARS = 255
MAX_ROOMS = 1000
"""That the receipts in one transaction speak of."""
TYPING = "m.typing"
RECEIPT = "m.receipt"


class EduReceivers:
    """Hands EDUs to their handlers. For the reactor thread."""

    def __init__(self, access: ServerAccess, handlers: Mapping[str, EduHandler]) -> None:
        """`handlers`: by type of EDU."""
        self._access = access
        self.handlers = handlers
        self._log = Logger()

    async def receive(self, origin: ServerName, edus: AsyncIterable[object]) -> None:
        """Take in the EDUs of one transaction, in their order. What is malformed or of no known
        type is passed over.

        Raises DatabaseUnavailable, and LimitExceeded where the server sends too much: then they
        have to be given again.
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
            await self._hand(handler, origin, edu_type, content)

    async def _hand(
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
                "EDU {type} of {origin} is not taken: {why}",
                type=edu_type,
                origin=origin,
                why=error.text,
            )
        except DatabaseUnavailable:
            raise
        except (
            Exception
        ):  # a bug of ours: repeated for ever, it would stop all that this server sends
            self._log.failure(
                "EDU {type} of {origin} could not be taken in", type=edu_type, origin=origin
            )

    async def _apply_acls(
        self, origin: ServerName, edu_type: str, content: Mapping[str, Any]
    ) -> Mapping[str, Any] | None:
        """What is left of the content; None for nothing."""
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
