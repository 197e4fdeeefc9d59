"""Changes to accounts: password, user type, deactivation by the owner, and flags (administrator,
locked, suspended, shadow-banned).

spec: client-server-api#legacy-account-management, client-server-api#account-moderation
"""

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import Forbidden, MissingToken, NotFound
from federation.protocol.ids import UserID
from homeserver.api.requester import Requester
from homeserver.services.accounts.deactivation import Deactivation
from homeserver.services.audit.audit import AuditEvent, record_event
from homeserver.services.login.confirmation import AccountConfirmation
from homeserver.services.login.credential_epoch import CredentialEpoch, check_epoch
from homeserver.services.login.password_login import SignIn
from homeserver.services.login.passwords import Passwords
from homeserver.services.login.sessions import Sessions
from homeserver.services.login.uia import UIA, AuthData, UIAOperation
from homeserver.services.login.uia_stages import (
    EMAIL_IDENTITY,
    MSISDN_IDENTITY,
    parse_proof,
)
from storage.accounts.accounts import AccountRow, AccountStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.threepids.threepids import ThreepidStore


class Accounts:
    """Reads and changes accounts."""

    # More than ten: a password change ends sessions, proofs and addresses, each in its own store.
    def __init__(
        self,
        *,
        clock: IReactorTime,
        database: Database,
        accounts: AccountStore,
        passwords: Passwords,
        sessions: Sessions,
        sign_in: SignIn,
        uia: UIA,
        confirmation: AccountConfirmation,
        deactivation: Deactivation,
        threepids: ThreepidStore,
        by_email: bool = False,
        by_phone: bool = False,
    ) -> None:
        """`by_email`, `by_phone`: whether a validated e-mail address or telephone number of the
        account allows a password reset."""
        self._clock = clock
        self._database = database
        self._accounts = accounts
        self._passwords = passwords
        self._sessions = sessions
        self._sign_in = sign_in
        self._uia = uia
        self._confirmation = confirmation
        self._deactivation = deactivation
        self._threepids = threepids
        self._reset_stages = [
            *([EMAIL_IDENTITY] if by_email else []),
            *([MSISDN_IDENTITY] if by_phone else []),
        ]

    async def do_change_password(
        self,
        caller: Requester,
        new_password: str,
        auth: AuthData | None,
        address: str,
        *,
        log_out_others: bool,
    ) -> None:
        """Change the caller's password, once the caller has confirmed it.

        Raises `WeakPassword`, and what `AccountConfirmation.check_confirmed` raises.
        """
        self._passwords.check_policy(new_password)
        epoch = await self._confirmation.check_confirmed(
            caller, "POST account/password", auth, address
        )
        await self.do_set_password(
            caller.user_id,
            new_password,
            log_out_but=caller if log_out_others else None,
            ip=address,
            epoch=epoch,
        )

    async def do_reset_password(
        self, new_password: str, auth: AuthData | None, ip: str, *, log_out: bool
    ) -> None:
        """Set a new password for the account with the validated e-mail address or telephone number.

        Raises `WeakPassword`, `AuthenticationRequired`, `Forbidden`, and `MissingToken` where
        password resets are disabled.
        """
        if not self._reset_stages or not self._sign_in.password_login:
            raise MissingToken
        self._passwords.check_policy(new_password)
        flows = [[stage] for stage in self._reset_stages]
        confirmation = await self._uia.check(
            UIAOperation("POST account/password", None, ip), flows, auth
        )
        proved = next(
            confirmation.completed[stage]
            for stage in self._reset_stages
            if stage in confirmation.completed
        )
        proof = parse_proof(proved)
        owner = await self._threepids.get_owner(proof.medium, proof.address)
        account = None if owner is None else await self.get_account(UserID(owner))
        if account is None or account.deactivated_ts is not None:
            raise Forbidden("No account has this address")
        await self.do_set_password(
            UserID(account.user_id), new_password, log_out_all=log_out, ip=ip, epoch=account.epoch
        )

    def check_password_policy(self, password: str) -> None:
        """Raise `WeakPassword` or `InvalidParam` unless this is acceptable as a new password."""
        self._passwords.check_policy(password)

    async def do_set_password(
        self,
        user_id: UserID,
        new_password: str,
        *,
        log_out_all: bool = False,
        log_out_but: Requester | None = None,
        by: UserID | None = None,
        ip: str | None = None,
        epoch: CredentialEpoch | None = None,
        extra_write: Callable[[WriteTransaction], None] | None = None,
    ) -> None:
        """Set a password, and end all sessions (`log_out_all`) or all but one (`log_out_but`).

        `by`: the administrator who sets it. `ip`, `epoch`: the IP address and credential epoch of
        the owner who sets it. `extra_write`: runs in the same write. Raises `WeakPassword`,
        `InvalidParam`, and what `check_epoch` raises.
        """
        self._passwords.check_policy(new_password)
        password_hash = await self._passwords.hash(new_password, ip)

        def write(txn: WriteTransaction) -> None:
            if epoch is not None:
                check_epoch(txn, user_id, epoch)
            self._accounts.set_password_hash(txn, user_id, password_hash)
            record_event(txn, user_id, AuditEvent.PASSWORD_CHANGED, self._now(), ip=ip, by=by)
            if log_out_all or log_out_but is not None:
                self._sessions.remove_sessions(txn, user_id, log_out_but, ip)
            else:
                self._sessions.revoke_unused_credentials(txn, user_id)
            if extra_write is not None:
                extra_write(txn)

        await self._database.write("set_password", write)

    async def do_deactivate_self(
        self, caller: Requester, auth: AuthData | None, address: str, *, erase: bool
    ) -> str:
        """Deactivate the caller's account, once the caller has confirmed it.

        Return what `Deactivation.do_deactivate` returns. Raises what
        `AccountConfirmation.check_confirmed` raises.
        """
        epoch = await self._confirmation.check_confirmed(
            caller, "POST account/deactivate", auth, address
        )
        return await self._deactivation.do_deactivate(
            caller.user_id, erase=erase, ip=address, epoch=epoch
        )

    async def get_account(self, user_id: UserID) -> AccountRow:
        """Return an account. Raises `NotFound`."""
        account = (await self._accounts.get_accounts([user_id])).get(user_id)
        if account is None:
            raise NotFound("There is no such user on this server")
        return account

    async def do_set_flags(
        self,
        user_id: UserID,
        *,
        is_admin: bool | None = None,
        locked: bool | None = None,
        suspended: bool | None = None,
        shadow_banned: bool | None = None,
        by: UserID | None = None,
        extra_write: Callable[[WriteTransaction], None] | None = None,
    ) -> None:
        """Set or clear flags of an account; None leaves a flag unchanged.

        `by`: the administrator who sets them. `extra_write`: runs in the same write. Raises
        `NotFound`.
        """
        account = await self.get_account(user_id)

        def write(txn: WriteTransaction) -> None:
            self._accounts.set_flags(
                txn,
                user_id,
                is_admin=is_admin,
                locked=locked,
                suspended=suspended,
                shadow_banned=shadow_banned,
            )
            if is_admin is not None and is_admin != account.is_admin:
                record_event(
                    txn,
                    user_id,
                    AuditEvent.ADMIN_GRANTED if is_admin else AuditEvent.ADMIN_REVOKED,
                    self._now(),
                    by=by,
                )
            if locked is not None and locked != account.locked:
                record_event(
                    txn,
                    user_id,
                    AuditEvent.LOCKED if locked else AuditEvent.UNLOCKED,
                    self._now(),
                    by=by,
                )
            if suspended is not None and suspended != account.suspended:
                what = AuditEvent.SUSPENDED if suspended else AuditEvent.UNSUSPENDED
                record_event(txn, user_id, what, self._now(), by=by)
            if shadow_banned is not None and shadow_banned != account.shadow_banned:
                what = AuditEvent.SHADOW_BANNED if shadow_banned else AuditEvent.SHADOW_BAN_LIFTED
                record_event(txn, user_id, what, self._now(), by=by)
            if locked:
                self._sessions.revoke_credentials(txn, user_id)
            if extra_write is not None:
                extra_write(txn)

        await self._database.write("set_account_flags", write)

    async def do_set_user_type(self, user_id: UserID, user_type: str | None, *, by: UserID) -> None:
        """Set the user type; None: a person. `by`: the administrator who sets it.

        Raises `NotFound`.
        """
        account = await self.get_account(user_id)

        def write(txn: WriteTransaction) -> None:
            self._accounts.set_user_type(txn, user_id, user_type)
            if user_type != account.user_type:
                record_event(
                    txn, user_id, AuditEvent.USER_TYPE_CHANGED, self._now(), by=by, detail=user_type
                )

        await self._database.write("set_user_type", write)

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)
