"""Registration of accounts: by users, administrators, identity providers, application services, and
for guests.

Laws:
- One write stores the account, its first display name, its first session, the use of its
  registration token, and the result in the session of user-interactive authentication (UIA).
- A UIA session creates one account, however many requests use it at the same time: the first write
  claims it.
- If a response is lost and the client repeats the request in the same UIA session, it gets the
  account that exists already.
- The rate limit of registrations counts created accounts. A registration with several UIA stages
  takes several requests, but counts once.
- A user name is checked before the UIA stages, and again in the write.

spec: client-server-api#post_matrixclientv3register
"""

from collections.abc import Callable, Sequence
from typing import Final, Protocol

import msgspec
from msgspec.structs import replace
from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import (
    Forbidden,
    MatrixError,
    ThreepidInUse,
    UserInUse,
    UserLocked,
    UserSuspended,
)
from federation.protocol.ids import DeviceID, ServerName, UserID, localpart_of
from homeserver.api.limits import Limit
from homeserver.http.rate_limits import RateLimiter, address_key
from homeserver.services.accounts.registration_rules import (
    RegistrationRules,
    compute_flows,
    parse_registered_id,
)
from homeserver.services.audit.audit import AuditEvent, record_event
from homeserver.services.login.approvals import Approvals, NewAccountTasks, NoNewAccountTasks
from homeserver.services.login.password_login import SignIn
from homeserver.services.login.passwords import Passwords
from homeserver.services.login.sessions import NewSession, Sessions
from homeserver.services.login.uia import UIA, AuthData, Confirmation, UIAOperation, UIASessionUsed
from homeserver.services.login.uia_stages import (
    EMAIL_IDENTITY,
    MSISDN_IDENTITY,
    REGISTRATION_TOKEN,
    TERMS,
    parse_policy_versions,
    parse_proof,
)
from homeserver.services.plugins.hooks import Plugins
from homeserver.services.profiles.profiles import DISPLAY_NAME
from homeserver.services.threepids.validation import EMAIL, ValidatedThreepid
from homeserver.services.tokens.secret_tokens import SecretGenerator
from storage.accounts.accounts import AccountRow, AccountStore
from storage.accounts.policy_consents import PolicyConsentStore
from storage.accounts.registration_tokens import RegistrationTokenRow, RegistrationTokenStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.profiles.profiles import ProfileStore
from storage.threepids.threepids import ThreepidRow, ThreepidStore

_ATTEMPTS: Final = 5
"""Attempts to generate an unused name or token."""


class ReservedNames(Protocol):
    """User IDs reserved for application services, which have whole namespaces."""

    def is_reserved(self, user_id: UserID) -> bool:
        """Return whether users cannot register this ID."""
        ...


class NoReservedNames:
    """The reserved names of a server without application services."""

    def is_reserved(self, user_id: UserID) -> bool:
        """Return False."""
        return False


class NewAccountEmails(Protocol):
    """Handles the e-mail addresses of new accounts."""

    def add_email_pusher(
        self, txn: WriteTransaction, user_id: UserID, address: str, languages: str
    ) -> None:
        """Handle an address, in the write that stores the account.

        `languages`: the owner's languages, as in `Accept-Language`.
        """
        ...


class RegistrationRequest(msgspec.Struct, frozen=True):
    """The parameters of a registration."""

    username: str | None = None
    password: str | None = None
    device_id: DeviceID | None = None
    device_name: str | None = None
    inhibit_login: bool = False
    refreshable: bool = False
    is_admin: bool = False
    user_type: str | None = None
    languages: str = ""
    """The owner's languages, as in `Accept-Language`."""
    display_name: str | None = None
    emails: tuple[str, ...] = ()
    """Addresses validated by a third party; those of other accounts are skipped."""
    asserted_by: str | None = None
    """The identity provider that validated them."""
    by: UserID | None = None
    """The administrator who creates the account."""
    address: str | None = None
    """The client's IP address, if known."""
    guest_token: str | None = None
    """The access token of the guest `username`, who is upgraded to a full account."""


class NewAccount(msgspec.Struct, frozen=True):
    """A new account, with its first session if one was requested."""

    user_id: UserID
    session: NewSession | None
    epoch: int = 0
    """The credential epoch (`homeserver/services/login/credential_epoch.py`)."""


ExtraWrite = Callable[[WriteTransaction, UserID], None]
"""A further part of the write that stores an account. May raise, which rolls the write back."""


class Registration:
    """Creates accounts."""

    # More than ten: an account is written in one transaction with all that belongs to it.
    def __init__(
        self,
        *,
        clock: IReactorTime,
        secret_text: SecretGenerator,
        database: Database,
        accounts: AccountStore,
        profiles: ProfileStore,
        tokens: RegistrationTokenStore,
        threepids: ThreepidStore,
        passwords: Passwords,
        sessions: Sessions,
        sign_in: SignIn,
        uia: UIA,
        limiter: RateLimiter,
        server_name: ServerName,
        rules: RegistrationRules,
        reserved: ReservedNames,
        plugins: Plugins | None = None,
        consents: PolicyConsentStore | None = None,
        approvals: Approvals | None = None,
        new_account_tasks: NewAccountTasks | None = None,
        new_account_emails: NewAccountEmails | None = None,
    ) -> None:
        """`new_account_tasks`: the tasks for new accounts; they do not run for guests.
        `new_account_emails` handles the e-mail addresses of new accounts."""
        self._approvals = approvals
        self._consents = consents
        self._plugins = plugins or Plugins()
        self._clock = clock
        self._secret_text = secret_text
        self._database = database
        self._accounts = accounts
        self._profiles = profiles
        self._tokens = tokens
        self._threepids = threepids
        self._passwords = passwords
        self._sessions = sessions
        self._sign_in = sign_in
        self._uia = uia
        self._limiter = limiter
        self._rules = rules
        self._reserved = reserved
        self._new_account_tasks = new_account_tasks or NoNewAccountTasks()
        self._new_account_emails = new_account_emails
        self.server_name = server_name
        self._flows = compute_flows(rules)

    @property
    def is_open(self) -> bool:
        """Whether users can register."""
        return self._rules.enabled and bool(self._flows)

    @property
    def rules(self) -> RegistrationRules:
        """The rules of registration."""
        return self._rules

    def check_open(self) -> None:
        """Raise `Forbidden` unless users can register."""
        if not self.is_open:
            raise Forbidden("Registration is closed on this server")

    async def check_username(self, username: str, *, privileged: bool = False) -> UserID:
        """Return the user ID for a free user name, in lower case.

        Raises `InvalidUsername`, `Exclusive`, `UserInUse`.
        """
        user_id = self._user_id(username, privileged=privileged)
        if await self._accounts.get_accounts([user_id]):
            raise UserInUse("User ID already taken")
        return user_id

    async def check_available(self, username: str) -> None:
        """Check that a user name is free, without revealing users if the operator forbids it.

        Raises what `check_username` raises, and `Forbidden`.
        """
        self.check_open()
        if self._rules.reveals_taken_names:
            await self.check_username(username)
        else:
            self._user_id(username)

    async def is_token_valid(self, token: str) -> bool:
        """Return whether a registration token is valid now.

        Raises `Forbidden` where registration is closed.
        """
        self.check_open()
        row = await self._tokens.get_registration_token(token)
        if row is None or (row.expires_ts is not None and row.expires_ts <= self._now()):
            return False
        return row.uses_allowed is None or row.pending + row.completed < row.uses_allowed

    async def do_create_token(self, *, uses_allowed: int | None, seconds: int | None) -> str:
        """Create a registration token. `uses_allowed`, `seconds`: its limits; None: unlimited."""
        expires_ts = None if seconds is None else self._now() + seconds * 1000
        for _ in range(_ATTEMPTS):
            row = RegistrationTokenRow(
                self._secret_text.registration_token(),
                uses_allowed=uses_allowed,
                expires_ts=expires_ts,
            )
            if await self._database.write(
                "add_registration_token", self._tokens.add_registration_token, row
            ):
                return row.token
        raise RuntimeError("the random source repeats its output")

    async def do_register(
        self, request: RegistrationRequest, auth: AuthData | None, address: str
    ) -> NewAccount:
        """Create an account, once the UIA stages are complete.

        Raises `Forbidden`, `InvalidUsername`, `Exclusive`, `UserInUse`, `WeakPassword`,
        `UserLocked`, `UserSuspended`, `AuthenticationRequired`, `LimitExceeded` (the UIA session
        stays valid); for a repeated request also what `SignIn.check_usable` raises. Raises
        `UserAwaitingApproval` after it has created an account that needs approval.
        """
        self.check_open()
        request = replace(request, address=address)
        conflict: MatrixError | None = None
        if request.guest_token is not None:
            await self._check_guest(request.guest_token, request.username)
        elif request.username is not None:
            try:
                await self.check_username(request.username)
            except UserInUse as error:
                # Raise at once, unless this may be a repeated request whose session has created
                # this account.
                if (
                    auth is None or auth.get("session") is None
                ) and self._rules.reveals_taken_names:
                    raise
                conflict = error
        if request.password is not None:
            self._passwords.check_policy(request.password)
        operation = UIAOperation("POST register", None, address)
        confirmation = await self._uia.check(operation, self._flows, auth, keep_session=True)
        if confirmation.result is not None:
            return await self._repeat(request, UserID(confirmation.result), address)
        if conflict is not None:
            raise conflict
        proved = confirmation.completed.get(EMAIL_IDENTITY)
        emails = [] if proved is None else [parse_proof(proved).address]
        await self._check_allowed(request.username, emails, address)
        try:
            with self._limiter.count_unless_failed(Limit.REGISTRATION, address_key(address)):
                registered = await self._make(request, confirmation)
        except UIASessionUsed:  # by a concurrent request: return the account it has created
            return await self.do_register(request, auth, address)
        if self._rules.needs_approval and self._approvals is not None:
            raise await self._approvals.get_refusal(registered.user_id)
        return registered

    async def _check_guest(self, token: str, username: str | None) -> None:
        """Raise `Forbidden` unless the token belongs to the user with this name.

        Also raises `UserLocked`, and `UserSuspended`, as a suspended account cannot change itself.
        The write checks that the user is a guest: in a repeated request they no longer are.
        """
        owner = await self._sessions.get_owner(token)
        if owner is None or username is None or localpart_of(owner) != username.lower():
            raise Forbidden("username and guest_access_token do not belong to the same guest")
        account = (await self._accounts.get_accounts([owner]))[owner]
        if account.locked:
            raise UserLocked(soft_logout=True)
        if account.suspended:
            raise UserSuspended

    async def do_register_privileged(self, request: RegistrationRequest) -> NewAccount:
        """Create an account for an administrator, regardless of the rules.

        Raises `InvalidUsername`, `Exclusive`, `UserInUse`.
        """
        if request.username is not None:
            await self.check_username(request.username, privileged=True)
        return await self._make(request, None)

    def parse_username(self, username: str) -> UserID:
        """Return the user ID for a name, reserved or not. Raises `InvalidUsername`."""
        return self._user_id(username, privileged=True, for_service=True)

    async def do_register_for_service(
        self, request: RegistrationRequest, service_id: str
    ) -> NewAccount:
        """Create an account without password in the namespace of an application service.

        Raises `InvalidUsername`, `UserInUse`.
        """
        own = replace(request, password=None, is_admin=False, guest_token=None)
        return await self._make(own, None, service_id=service_id)

    async def do_register_for_provider(
        self, request: RegistrationRequest, extra: ExtraWrite
    ) -> UserID:
        """Create an account for a user authenticated by an identity provider; begin no session.

        Works also where registration is closed. `extra`: runs in the write. Raises
        `Forbidden`, `InvalidUsername`, `Exclusive`, `UserInUse`, and what `extra` raises.
        """
        assert request.username is not None
        await self._check_allowed(request.username, request.emails, "")
        now = self._now()
        account = AccountRow(
            await self.check_username(request.username),
            None,
            now,
            approval_pending_ts=now if self._rules.needs_approval else None,
            approval_languages=request.languages if self._rules.needs_approval else None,
        )
        await self._database.write("register", self._write, account, None, None, request, extra)
        if account.approval_pending_ts is None:
            await self._new_account_tasks.run(UserID(account.user_id))
        return UserID(account.user_id)

    async def _check_allowed(
        self, username: str | None, emails: Sequence[str], address: str
    ) -> None:
        refusal = await self._plugins.check_registration(username, emails, address)
        if refusal is not None:
            raise Forbidden(refusal)

    async def do_register_guest(
        self, device_name: str | None, refreshable: bool, address: str
    ) -> NewAccount:
        """Create a guest account. Raises `Forbidden`, `LimitExceeded`."""
        if not self._rules.guests:
            raise Forbidden("Guest access is disabled on this server")
        self._limiter.check(Limit.REGISTRATION, address_key(address))
        return await self._make(
            RegistrationRequest(device_name=device_name, refreshable=refreshable, address=address),
            None,
            is_guest=True,
        )

    async def _make(
        self,
        request: RegistrationRequest,
        confirmation: Confirmation | None,
        *,
        is_guest: bool = False,
        service_id: str | None = None,
    ) -> NewAccount:
        password_hash = (
            None
            if request.password is None
            else await self._passwords.hash(request.password, request.address)
        )
        needs_approval = self._rules.needs_approval and confirmation is not None
        for _ in range(1 if request.username is not None else _ATTEMPTS):
            user_id = self._user_id(
                request.username or self._secret_text.localpart(),
                privileged=confirmation is None or request.guest_token is not None,
                for_service=service_id is not None,
            )
            account = AccountRow(
                user_id=user_id,
                password_hash=password_hash,
                created_ts=self._now(),
                is_guest=is_guest,
                is_admin=request.is_admin,
                user_type=request.user_type,
                approval_pending_ts=self._now() if needs_approval else None,
                approval_languages=request.languages if needs_approval else None,
                appservice_id=service_id,
            )
            session = (
                None if request.inhibit_login or needs_approval else self._session(request, user_id)
            )
            try:
                await self._database.write(
                    "register", self._write, account, session, confirmation, request
                )
            except UserInUse:
                continue
            if not is_guest and service_id is None and not needs_approval:
                await self._new_account_tasks.run(user_id)
            return NewAccount(user_id, session)
        raise UserInUse("User ID already taken")

    def _write(
        self,
        txn: WriteTransaction,
        account: AccountRow,
        session: NewSession | None,
        confirmation: Confirmation | None,
        request: RegistrationRequest,
        extra: ExtraWrite | None = None,
    ) -> None:
        """Store the account and all that belongs to it, in one write.

        Raises `UIASessionUsed`, `UserInUse`, `ThreepidInUse`, and what `extra` raises.
        """
        if confirmation is not None:
            self._uia.claim(txn, confirmation, account.user_id)
        was_guest = request.guest_token is not None
        if not (
            self._accounts.upgrade_guest(txn, account)
            if was_guest
            else self._accounts.add_account(txn, account)
        ):
            raise UserInUse("User ID already taken")
        record_event(
            txn,
            UserID(account.user_id),
            AuditEvent.REGISTERED,
            account.created_ts,
            ip=request.address,
            by=request.by,
        )
        if account.is_admin:
            record_event(
                txn,
                UserID(account.user_id),
                AuditEvent.ADMIN_GRANTED,
                account.created_ts,
                ip=request.address,
                by=request.by,
            )
        if was_guest and account.approval_pending_ts is not None:
            self._sessions.remove_sessions(txn, UserID(account.user_id))
        if not was_guest:
            # Until the user sets a display name, rooms show the localpart, not the full user ID.
            name = msgspec.json.encode(request.display_name or localpart_of(account.user_id))
            self._profiles.set_field(txn, account.user_id, DISPLAY_NAME, name, propagate=False)
        if account.approval_pending_ts is not None and self._approvals is not None:
            self._approvals.notify_administrators(
                txn, UserID(account.user_id), account.approval_pending_ts
            )
        elif not account.is_guest and account.appservice_id is None:
            self._new_account_tasks.schedule(txn, UserID(account.user_id))
        if session is not None:
            self._sessions.add(txn, session)
        if confirmation is not None:
            token = confirmation.completed.get(REGISTRATION_TOKEN)
            if token is not None:
                self._tokens.set_completed(txn, token)
            agreed = confirmation.completed.get(TERMS)
            if agreed is not None and self._consents is not None:
                self._consents.add_consents(
                    txn, account.user_id, parse_policy_versions(agreed), account.created_ts
                )
                record_event(
                    txn,
                    UserID(account.user_id),
                    AuditEvent.TERMS_ACCEPTED,
                    account.created_ts,
                    ip=request.address,
                )
            for stage in (EMAIL_IDENTITY, MSISDN_IDENTITY):
                proved = confirmation.completed.get(stage)
                if proved is not None:
                    self._add_validated(txn, account, parse_proof(proved), request)
        for address in request.emails:
            asserting = frozenset(() if request.asserted_by is None else (request.asserted_by,))
            row = ThreepidRow(
                EMAIL, address, account.user_id, account.created_ts, account.created_ts, asserting
            )
            if self._threepids.add_threepid(txn, row):
                self._record_address(txn, account, EMAIL, address, request)
        if extra is not None:
            extra(txn, UserID(account.user_id))

    def _add_validated(
        self,
        txn: WriteTransaction,
        account: AccountRow,
        proof: ValidatedThreepid,
        request: RegistrationRequest,
    ) -> None:
        row = ThreepidRow(
            proof.medium, proof.address, account.user_id, proof.validated_ts, account.created_ts
        )
        if not self._threepids.add_threepid(txn, row):
            raise ThreepidInUse
        self._record_address(txn, account, proof.medium, proof.address, request)

    def _record_address(
        self,
        txn: WriteTransaction,
        account: AccountRow,
        medium: str,
        address: str,
        request: RegistrationRequest,
    ) -> None:
        what = AuditEvent.ADDRESS_ADDED if medium == EMAIL else AuditEvent.NUMBER_ADDED
        record_event(
            txn,
            UserID(account.user_id),
            what,
            account.created_ts,
            ip=request.address,
            by=request.by,
            detail=address,
        )
        if self._new_account_emails is not None and medium == EMAIL:
            self._new_account_emails.add_email_pusher(
                txn, UserID(account.user_id), address, request.languages
            )

    async def _repeat(
        self, request: RegistrationRequest, user_id: UserID, address: str
    ) -> NewAccount:
        """Return the account that an earlier request in the same UIA session created.

        Checks its password, and that the account is usable.
        """
        account = (await self._accounts.get_accounts([user_id]))[user_id]
        verdict = await self._passwords.verify(
            request.password or "", account.password_hash, address
        )
        same_name = request.username is None or self._user_id(request.username) == user_id
        no_password = account.password_hash is None and request.password is None
        if (
            account.deactivated_ts is not None
            or not same_name
            or not (verdict.correct or no_password)
        ):
            raise Forbidden("This session has already registered another account")
        if account.approval_pending_ts is not None and self._approvals is not None:
            raise await self._approvals.get_refusal(user_id)
        await self._sign_in.check_usable(account, "password", address)
        session = None if request.inhibit_login else self._session(request, user_id, account.epoch)
        if session is not None:
            await self._sessions.do_begin(session)
        return NewAccount(user_id, session, account.epoch)

    def _session(
        self, request: RegistrationRequest, user_id: UserID, epoch: int | None = None
    ) -> NewSession:
        return self._sessions.prepare(
            user_id,
            address=request.address,
            epoch=epoch,
            device_id=request.device_id,
            device_name=request.device_name,
            refreshable=request.refreshable,
        )

    def is_reserved(self, user_id: UserID) -> bool:
        """Return whether the user ID is reserved for an application service."""
        return self._reserved.is_reserved(user_id)

    def _user_id(
        self, username: str, *, privileged: bool = False, for_service: bool = False
    ) -> UserID:
        return parse_registered_id(
            username,
            self.server_name,
            self._rules,
            self.is_reserved if not for_service else lambda _: False,
            privileged=privileged,
        )

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)
