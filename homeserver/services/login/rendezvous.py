"""Where two devices of somebody meet while one signs the other in by a QR code: a place for one
word of at most 4 KiB.

Laws:
- What is written there is encrypted between the two; the server passes it on, and believes nothing
  of it.
- Who writes says which word they saw last; the same word again, from who did not hear the answer,
  is no second one.
- It ends after five minutes, and there are not more than some thousands of them.

spec: MSC4388, MSC4108 in its form of 2024
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
from homeserver.services.tokens.secret_tokens import SecretText, hash_token
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.login.rendezvous import RendezvousRow, RendezvousStore

LARGEST: Final = 4096
"""Bytes."""
LIFETIME_MS: Final = 5 * 60 * 1000
MOST: Final = 5000

Who = Literal["off", "signed_in", "everybody"]


class Rendezvous:
    """All of these places."""

    def __init__(
        self,
        clock: IReactorTime,
        database: Database,
        store: RendezvousStore,
        secret_text: SecretText,
        *,
        who: Who,
    ) -> None:
        """`who` may begin one."""
        self._clock = clock
        self._database = database
        self._store = store
        self._secret_text = secret_text
        self._who = who

    def check_offered(self, *, older: bool = False) -> None:
        """Raises `Unrecognized` where there is no sign-in by QR code, or not the `older` one, which
        knows no tokens."""
        if self._who == "off" or (older and self._who != "everybody"):
            raise Unrecognized("This server has no sign-in by QR code")

    def may_begin(self, caller: Requester | None) -> bool:
        """Whether this one may begin one."""
        return self._who == "everybody" or (caller is not None and not caller.is_guest)

    async def do_begin(self, caller: Requester | None, data: bytes) -> tuple[str, RendezvousRow]:
        """Its id, and what it is. Raises `Forbidden`, `TooLarge`, `LimitExceeded`."""
        if not self.may_begin(caller):
            raise Forbidden("Only who is signed in may begin a sign-in by QR code")
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
            if self._store.count(txn, now) >= MOST:
                raise LimitExceeded(
                    "Too many people sign in by QR code at this moment", retry_after_ms=10_000
                )
            self._store.add(txn, row)

        await self._database.write("begin_rendezvous", write)
        return rendezvous_id, row

    async def get(self, rendezvous_id: str) -> RendezvousRow:
        """Raises `NotFound`."""
        row = await self._store.get(hash_token(rendezvous_id), self.now())
        if row is None:
            raise NotFound("There is no such rendezvous any more")
        return row

    async def do_write(self, rendezvous_id: str, seen: str, data: bytes) -> RendezvousRow:
        """Replace the word by another, for who has seen the revision `seen`. Raises `NotFound`,
        `ConcurrentWrite`, `TooLarge`."""
        _check_size(data)
        await self.get(rendezvous_id)
        revision, now = self._secret_text.rendezvous_id(), self.now()

        def write(txn: WriteTransaction) -> RendezvousRow | None:
            row = self._store.get_in(txn, hash_token(rendezvous_id), now)
            if row is None or row.revision != seen:
                return row if row is not None and row.data == data else None
            written = replace(row, data=data, revision=revision, written_ts=now)
            self._store.set_data(txn, written)
            return written

        found = await self._database.write("write_rendezvous", write)
        if found is None:
            raise ConcurrentWrite
        return found

    async def do_end(self, rendezvous_id: str) -> None:
        """Raises `NotFound`."""
        row = await self.get(rendezvous_id)
        await self._database.write("end_rendezvous", self._store.remove, row.id_hash)

    async def do_sweep(self, limit: int) -> int:
        """Remove up to `limit` whose time is over; how many."""
        return await self._store.remove_old(self.now(), limit)

    def now(self) -> int:
        """Milliseconds since 1970."""
        return int(self._clock.seconds() * 1000)


def _check_size(data: bytes) -> None:
    if len(data) > LARGEST:
        raise TooLarge(f"At most {LARGEST} bytes are passed on")
