"""Rendezvous sessions for the sign-in by QR code: a small payload, shared by two devices.

Laws:
- The payload is encrypted between the two devices; the server passes it on and does not trust it.
- To write, a client sends the etag that it saw last. If the payload has changed since, the write is
  refused, except if the new payload equals the stored one. Then the client is repeating a write
  whose response was lost: the write succeeds, and the etag does not change.
- A session ends after five minutes, and the number of sessions is bounded.

spec: MSC4388, MSC4108 (version of 2024)
"""

from typing import Final, Literal

from msgspec.structs import replace
from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import (
    ConcurrentWrite,
    Forbidden,
    LimitExceeded,
    NotFound,
    TooLarge,
    Unrecognized,
)
from homeserver.api.requester import Requester
from homeserver.services.tokens.secret_tokens import SecretGenerator, hash_token
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.login.rendezvous import RendezvousRow, RendezvousStore

MAX_PAYLOAD_BYTES: Final = 4096
"""Bytes of a payload."""
LIFETIME_MS: Final = 5 * 60 * 1000
MAX_SESSIONS: Final = 5000

RendezvousCreators = Literal["off", "signed_in", "everybody"]


class RendezvousSessions:
    """Creates, reads, updates and deletes rendezvous sessions."""

    def __init__(
        self,
        *,
        clock: IReactorTime,
        database: Database,
        store: RendezvousStore,
        secret_text: SecretGenerator,
        creators: RendezvousCreators,
    ) -> None:
        """`creators`: the clients that may create a session."""
        self._clock = clock
        self._database = database
        self._store = store
        self._secret_text = secret_text
        self._creators = creators

    def check_enabled(self, *, older: bool = False) -> None:
        """Raise `Unrecognized` where the sign-in by QR code is disabled.

        `older`: the variant without access tokens, enabled only where everybody may create a
        session.
        """
        if self._creators == "off" or (older and self._creators != "everybody"):
            raise Unrecognized("This server has no sign-in by QR code")

    def may_create(self, caller: Requester | None) -> bool:
        """Return whether the caller may create a session."""
        return self._creators == "everybody" or (caller is not None and not caller.is_guest)

    async def do_create(self, caller: Requester | None, data: bytes) -> tuple[str, RendezvousRow]:
        """Create a session; return its ID and row.

        Raises `Forbidden`, `TooLarge`, `LimitExceeded`.
        """
        if not self.may_create(caller):
            raise Forbidden("Only a signed-in user may start a sign-in by QR code")
        _check_size(data)
        rendezvous_id = self._secret_text.rendezvous_id()
        now = self.now()
        row = RendezvousRow(
            hash_token(rendezvous_id),
            data,
            self._secret_text.rendezvous_id(),
            now,
            now + LIFETIME_MS,
        )

        def write(txn: WriteTransaction) -> None:
            if self._store.count(txn, now) >= MAX_SESSIONS:
                raise LimitExceeded(
                    "Too many sign-ins by QR code are in progress", retry_after_ms=10_000
                )
            self._store.add(txn, row)

        await self._database.write("begin_rendezvous", write)
        return rendezvous_id, row

    async def get(self, rendezvous_id: str) -> RendezvousRow:
        """Return a session. Raises `NotFound`."""
        row = await self._store.get(hash_token(rendezvous_id), self.now())
        if row is None:
            raise NotFound("The rendezvous session does not exist or has expired")
        return row

    async def do_write(self, rendezvous_id: str, seen: str, data: bytes) -> RendezvousRow:
        """Replace the payload, if its etag is still `seen`.

        Raises `NotFound`, `ConcurrentWrite`, `TooLarge`.
        """
        _check_size(data)
        await self.get(rendezvous_id)
        etag, now = self._secret_text.rendezvous_id(), self.now()

        def write(txn: WriteTransaction) -> RendezvousRow | None:
            row = self._store.get_in(txn, hash_token(rendezvous_id), now)
            if row is None or row.etag != seen:
                return row if row is not None and row.data == data else None
            written = replace(row, data=data, etag=etag, written_ts=now)
            self._store.set_data(txn, written)
            return written

        found = await self._database.write("write_rendezvous", write)
        if found is None:
            raise ConcurrentWrite
        return found

    async def do_delete(self, rendezvous_id: str) -> None:
        """Delete a session. Raises `NotFound`."""
        row = await self.get(rendezvous_id)
        await self._database.write("end_rendezvous", self._store.remove, row.id_hash)

    async def do_sweep(self, limit: int) -> int:
        """Delete up to `limit` expired sessions; return the number."""
        return await self._store.remove_old(self.now(), limit)

    def now(self) -> int:
        """Return the time in milliseconds since 1970."""
        return int(self._clock.seconds() * 1000)


def _check_size(data: bytes) -> None:
    if len(data) > MAX_PAYLOAD_BYTES:
        raise TooLarge(f"The payload has at most {MAX_PAYLOAD_BYTES} bytes")
