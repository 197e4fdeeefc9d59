"""Passwords that people make for one program each: a bot, or an old client, that knows no other way
to sign in.

Laws:
- A password is shown once, to who made it, and kept as Argon2id.
- It begins with what it is found by, so that a sign-in tries one hash, however many an account has.
- It is good for `POST /login` alone, on a new device or one that it has let in before; a session
  that was begun with it cannot let others in, nor set the keys of the account. Its end, by its
  owner, an administrator or its time, ends the sessions begun with it; the end of all sessions of
  an account ends it. While the account is locked it lets nobody in.

A failure counts as that of any password (`homeserver/services/login/password_login.py`).
"""

from collections.abc import Sequence
from typing import Final

from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import Forbidden, InvalidParam, NotFound
from federation.protocol.ids import DeviceID, UserID
from homeserver.api.requester import Requester
from homeserver.services.audit.audit import Happened, note
from homeserver.services.login.credential_epoch import Era, check_era
from homeserver.services.login.passwords import Passwords
from homeserver.services.login.sessions import NewSession, Sessions
from homeserver.services.tokens.secret_tokens import SecretText, application_password_id
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.login.application_passwords import ApplicationPasswordRow, ApplicationPasswordStore

LONGEST_NAME: Final = 100
"""In characters."""


class NameTaken(InvalidParam):
    """The account has one of this name."""


class TooMany(Forbidden):
    """The account has as many as it may have."""


class ApplicationPasswords:
    """Makes, finds and ends them."""

    def __init__(
        self,
        clock: IReactorTime,
        database: Database,
        store: ApplicationPasswordStore,
        passwords: Passwords,
        secret_text: SecretText,
        sessions: Sessions,
        *,
        enabled: bool = True,
        in_login_flows: bool = False,
        most: int = 20,
        longest_ms: int | None = None,
    ) -> None:
        """`most`: of one account; `longest_ms`: after how long each ends at the latest."""
        self._clock = clock
        self._database = database
        self._store = store
        self._passwords = passwords
        self._secret_text = secret_text
        self._sessions = sessions
        self.enabled = enabled
        self.in_login_flows = enabled and in_login_flows
        self._most = most
        self.longest_ms = longest_ms

    async def get_passwords(self, user_id: UserID) -> Sequence[ApplicationPasswordRow]:
        """Those of a user, the oldest first."""
        return await self._store.get_passwords(user_id)

    async def find(self, password: str) -> ApplicationPasswordRow | None:
        """The one that a password claims to be; None where it is none of these, or its time is
        over."""
        password_id = application_password_id(password) if self.enabled else None
        row = None if password_id is None else await self._store.get_password(password_id)
        return (
            None
            if row is None or (row.expires_ts is not None and row.expires_ts <= self._now())
            else row
        )

    async def do_make(
        self,
        user_id: UserID,
        name: str,
        lifetime_ms: int | None,
        *,
        era: Era,
        address: str | None = None,
    ) -> str:
        """A new one, to be shown once. `lifetime_ms`: None for as long as may be; `address`: whence
        it is asked for. Raises as `check_era`, `Forbidden` where there are none, `InvalidParam`,
        `NameTaken`, `TooMany`, `LimitExceeded`."""
        if not self.enabled:
            raise Forbidden("This server has no passwords for programs")
        if not 1 <= len(name) <= LONGEST_NAME or not name.isprintable() or not name.strip():
            raise InvalidParam(f"A name has 1 to {LONGEST_NAME} characters")
        if lifetime_ms is not None and lifetime_ms <= 0:
            raise InvalidParam("It must end in the future")
        lasts = min(
            (each for each in (lifetime_ms, self.longest_ms) if each is not None), default=None
        )
        password = self._secret_text.application_password()
        password_hash = await self._passwords.hash(password, address)
        now = self._now()
        row = ApplicationPasswordRow(
            password_id=application_password_id(password) or "",
            user_id=user_id,
            name=name,
            password_hash=password_hash,
            created_ts=now,
            expires_ts=None if lasts is None else now + lasts,
        )

        def write(txn: WriteTransaction) -> None:
            check_era(txn, user_id, era)
            if self._store.count_passwords(txn, user_id) >= self._most:
                raise TooMany(f"An account has at most {self._most} passwords for programs")
            if not self._store.add_password(txn, row):
                raise NameTaken("You have a password of this name")
            note(txn, user_id, Happened.APPLICATION_PASSWORD_MADE, now, detail=name)

        await self._database.write("add_application_password", write)
        return password

    async def is_program(self, caller: Requester) -> bool:
        """Whether a session was begun with one."""
        return caller.device_id is not None and await self._store.is_program(
            caller.user_id, caller.device_id
        )

    def check_device(
        self, txn: WriteTransaction, session: NewSession, row: ApplicationPasswordRow
    ) -> None:
        """Raises `Forbidden` where the session would take the place of one that was begun
        otherwise."""
        if self._store.is_other_device(txn, session.user_id, session.device_id, row.password_id):
            raise Forbidden(
                "Another session has this device; a program gets a new one without device_id"
            )

    def note_use(
        self, txn: WriteTransaction, session: NewSession, row: ApplicationPasswordRow
    ) -> None:
        """A session was begun with it, in the write that begins it. Raises `Forbidden` where it has
        just ended."""
        if not self._store.set_used(
            txn, session.user_id, session.device_id, row.password_id, session.now
        ):
            raise Forbidden("This password has just been ended")

    async def do_end(self, user_id: UserID, password_id: str, *, by: UserID | None = None) -> None:
        """End one of a user's, and the sessions that were begun with it. `by`: the administrator
        who does. Raises `NotFound`."""
        if not await self._database.write(
            "end_application_password", self._end, user_id, password_id, by
        ):
            raise NotFound("There is no such password")

    async def do_sweep(self, limit: int) -> int:
        """End up to `limit` whose time is over; how many."""

        def write(txn: WriteTransaction) -> int:
            expired = self._store.get_expired(txn, self._now(), limit)
            for user_id, password_id in expired:
                self._end(txn, UserID(user_id), password_id)
            return len(expired)

        return await self._database.write("end_expired_application_passwords", write)

    def _end(
        self, txn: WriteTransaction, user_id: UserID, password_id: str, by: UserID | None = None
    ) -> bool:
        removed = self._store.remove_password(txn, user_id, password_id)
        if removed is None:
            return False
        name, device_ids = removed
        self._sessions.remove_devices(
            txn, user_id, [DeviceID(device_id) for device_id in device_ids]
        )
        note(txn, user_id, Happened.APPLICATION_PASSWORD_ENDED, self._now(), by=by, detail=name)
        return True

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)
