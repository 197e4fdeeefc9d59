"""Application passwords: each for one program that has no other way to sign in (a bot, an old
client).

Laws:
- A password is shown once, to its owner, and stored as an Argon2id hash.
- It starts with its ID, so a sign-in checks one hash, however many passwords the account has.
- It is valid for `POST /login` only, on a new device or one that it has signed in before. Its
  session cannot sign in other clients or set cross-signing keys.
- When its owner or an administrator revokes it, its sessions end. When it expires, it is refused
  immediately, and a job ends its sessions soon afterwards.
- An operation that ends all sessions of the account, or all but the current one, also revokes its
  application passwords. A lock does not revoke them, but they are refused while it lasts.

A failed sign-in counts like one with the account's password
(`homeserver/services/login/password_login.py`).
"""

from collections.abc import Sequence
from typing import Final

from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import Forbidden, InvalidParam, NotFound
from federation.protocol.ids import DeviceID, UserID
from homeserver.api.requester import Requester
from homeserver.services.audit.audit import AuditEvent, record_event
from homeserver.services.login.credential_epoch import CredentialEpoch, check_epoch
from homeserver.services.login.passwords import Passwords
from homeserver.services.login.sessions import NewSession, Sessions
from homeserver.services.tokens.secret_tokens import SecretGenerator, parse_application_password_id
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.login.application_passwords import ApplicationPasswordRow, ApplicationPasswordStore

MAX_NAME_LENGTH: Final = 100
"""In characters."""


class ApplicationPasswordNameInUse(InvalidParam):
    """The account has an application password of this name."""


class TooManyApplicationPasswords(Forbidden):
    """The account has the maximum number of application passwords."""


class ApplicationPasswords:
    """Creates, finds and revokes application passwords."""

    def __init__(
        self,
        *,
        clock: IReactorTime,
        database: Database,
        store: ApplicationPasswordStore,
        passwords: Passwords,
        secret_text: SecretGenerator,
        sessions: Sessions,
        enabled: bool = True,
        in_login_flows: bool = False,
        max_per_account: int = 20,
        max_lifetime_ms: int | None = None,
    ) -> None:
        """`max_per_account`: the maximum per account. `max_lifetime_ms`: the maximum lifetime."""
        self._clock = clock
        self._database = database
        self._store = store
        self._passwords = passwords
        self._secret_text = secret_text
        self._sessions = sessions
        self.enabled = enabled
        self.in_login_flows = enabled and in_login_flows
        self._max_per_account = max_per_account
        self.max_lifetime_ms = max_lifetime_ms

    async def get_passwords(self, user_id: UserID) -> Sequence[ApplicationPasswordRow]:
        """Return the passwords of a user, oldest first."""
        return await self._store.get_passwords(user_id)

    async def find(self, password: str) -> ApplicationPasswordRow | None:
        """Return the row whose ID a password contains; None if there is none or it has expired.

        The hash is not checked.
        """
        password_id = parse_application_password_id(password) if self.enabled else None
        row = None if password_id is None else await self._store.get_password(password_id)
        return (
            None
            if row is None or (row.expires_ts is not None and row.expires_ts <= self._now())
            else row
        )

    async def do_create(
        self,
        user_id: UserID,
        name: str,
        lifetime_ms: int | None,
        *,
        epoch: CredentialEpoch,
        address: str | None = None,
    ) -> str:
        """Create a password and return it, to be shown once.

        `lifetime_ms`: None for the maximum. `address`: the client's IP address. Raises `Forbidden`
        where they are disabled, `InvalidParam`, `ApplicationPasswordNameInUse`,
        `TooManyApplicationPasswords`, `LimitExceeded`, and what `check_epoch` raises.
        """
        if not self.enabled:
            raise Forbidden("Application passwords are disabled on this server")
        if not 1 <= len(name) <= MAX_NAME_LENGTH or not name.isprintable() or not name.strip():
            raise InvalidParam(f"A name has 1 to {MAX_NAME_LENGTH} characters")
        if lifetime_ms is not None and lifetime_ms <= 0:
            raise InvalidParam("The password must expire in the future")
        lifetime = min(
            (each for each in (lifetime_ms, self.max_lifetime_ms) if each is not None), default=None
        )
        password = self._secret_text.application_password()
        password_hash = await self._passwords.hash(password, address)
        now = self._now()
        row = ApplicationPasswordRow(
            password_id=parse_application_password_id(password) or "",
            user_id=user_id,
            name=name,
            password_hash=password_hash,
            created_ts=now,
            expires_ts=None if lifetime is None else now + lifetime,
        )

        def write(txn: WriteTransaction) -> None:
            check_epoch(txn, user_id, epoch)
            if self._store.count_passwords(txn, user_id) >= self._max_per_account:
                raise TooManyApplicationPasswords(
                    f"An account has at most {self._max_per_account} application passwords"
                )
            if not self._store.add_password(txn, row):
                raise ApplicationPasswordNameInUse(
                    "You already have an application password with this name"
                )
            record_event(txn, user_id, AuditEvent.APPLICATION_PASSWORD_MADE, now, detail=name)

        await self._database.write("add_application_password", write)
        return password

    async def is_application_session(self, caller: Requester) -> bool:
        """Return whether the caller's session was begun with an application password."""
        return caller.device_id is not None and await self._store.is_application_session(
            caller.user_id, caller.device_id
        )

    def check_device(
        self, txn: WriteTransaction, session: NewSession, row: ApplicationPasswordRow
    ) -> None:
        """Raise `Forbidden` if the device belongs to a session that was begun in another way."""
        if self._store.is_device_of_other_login(
            txn, session.user_id, session.device_id, row.password_id
        ):
            raise Forbidden(
                "The device belongs to another session; omit device_id to get a new device"
            )

    def record_use(
        self, txn: WriteTransaction, session: NewSession, row: ApplicationPasswordRow
    ) -> None:
        """Record the use of a password, in the write that begins the session.

        Raises `Forbidden` if the password was revoked in the meantime.
        """
        if not self._store.set_used(
            txn, session.user_id, session.device_id, row.password_id, session.created_ts
        ):
            raise Forbidden("This application password has just been revoked")

    async def do_revoke(
        self, user_id: UserID, password_id: str, *, by: UserID | None = None
    ) -> None:
        """Revoke a password of a user and end its sessions.

        `by`: the administrator who revokes it. Raises `NotFound`.
        """
        if not await self._database.write(
            "end_application_password", self._end, user_id, password_id, by
        ):
            raise NotFound("There is no such application password")

    async def do_sweep(self, limit: int) -> int:
        """Revoke up to `limit` expired passwords; return the number."""

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
        record_event(
            txn, user_id, AuditEvent.APPLICATION_PASSWORD_ENDED, self._now(), by=by, detail=name
        )
        return True

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)
