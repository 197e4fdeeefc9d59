"""Sign-in with a password: find the account, check the password, check that the account is usable.

Laws:
- An unknown user, a user without a password and a wrong password get the same answer in the same
  time.
- Failures count against the account and the IP address. Above the limit, even a client with the
  right password has to wait. An attempt in progress counts against the account like a failure, so
  concurrent attempts allow no more guesses than sequential ones
  (`homeserver/services/login/password_attempts.py`).
- Only a client that has shown the right password learns that an account is locked, deactivated,
  expired or awaiting approval.
- An application password (`homeserver/services/login/application_passwords.py`) begins a session in
  the client-server API and does nothing else. It is refused on the server's web pages, and when a
  user confirms an operation. It is never sent to an LDAP directory, or to a plug-in that checks
  passwords.

spec: client-server-api#legacy-login, client-server-api#identifier-types
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final, Protocol

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.protocol.errors import (
    BadJson,
    ExpiredAccount,
    Forbidden,
    MatrixError,
    MissingParam,
    Unrecognized,
    UserAwaitingApproval,
    UserDeactivated,
    UserLocked,
)
from federation.protocol.ids import DeviceID, ServerName, UserID
from homeserver.api.limits import Limit
from homeserver.http.rate_limits import CountedAction, RateLimiter, address_key
from homeserver.services.audit.audit import AuditEvent, record_event, record_refusal
from homeserver.services.login.account_validity import AccountValidity
from homeserver.services.login.application_passwords import ApplicationPasswords
from homeserver.services.login.approvals import Approvals
from homeserver.services.login.credential_epoch import AuthenticationInvalidated
from homeserver.services.login.password_attempts import PasswordAttempts
from homeserver.services.login.passwords import Passwords
from homeserver.services.login.sessions import NewSession, Sessions
from homeserver.services.plugins.hooks import Plugins
from homeserver.services.threepids.phone_validation import (
    InvalidNumber,
    parse_phone_number,
    to_msisdn,
)
from homeserver.services.threepids.validation import EMAIL, MSISDN
from homeserver.services.tokens.secret_tokens import parse_application_password_id
from storage.accounts.accounts import AccountRow, AccountStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.login.application_passwords import ApplicationPasswordRow
from storage.threepids.threepids import ThreepidStore

_WRONG_CREDENTIALS: Final = "Wrong user name or password"
_MAX_NAME_LENGTH: Final = 255
_ATTEMPTS: Final = 3
"""Attempts of one sign-in: if the account changes while the password is checked, it is checked
again against the new state."""
_ADDRESS_COST: Final = 0.1
"""A failure counts less against the IP address than against the account: a whole office may share
one address."""

NOT_ALLOWED: Final = "not_allowed"
_REFUSAL_REASONS: Final[Mapping[type[MatrixError], str]] = {
    UserDeactivated: "deactivated",
    UserLocked: "locked",
    ExpiredAccount: "expired",
    UserAwaitingApproval: "awaiting_approval",
    Forbidden: NOT_ALLOWED,
}
"""Reasons in audit records: `Reason` of `homeserver/services/upstream/identity.py` has the same."""


class EmailAddress(str):
    """An e-mail address used as user name, in lower case."""

    __slots__ = ()
    medium: Final = EMAIL


class PhoneNumber(str):
    """A telephone number used as user name: the digits of E.164."""

    __slots__ = ()
    medium: Final = MSISDN


class ExternalAccountRefused(Exception):
    """An external password was right, but the account is not usable.

    `user_id`: the owner, if the account exists here.
    """

    def __init__(self, user_id: UserID | None, error: MatrixError) -> None:
        super().__init__(error.text)
        self.user_id = user_id
        self.error = error


class ExternalPasswords(Protocol):
    """A source of passwords outside this server's database."""

    async def check(
        self, name: str, account: AccountRow | None, password: str, address: str
    ) -> UserID | None:
        """Return the owner of name and password; None where they are wrong.

        `account`: the account here with this name, if any. `address`: the client's IP address.
        Raises `MatrixError` where the source is unavailable, `ExternalAccountRefused` where the
        account is not usable.
        """
        ...


class SignIn:
    """Checks passwords and begins sessions with them."""

    _log = Logger()

    # More than ten: a sign-in passes all checks of an account; four are options.
    def __init__(
        self,
        *,
        clock: IReactorTime,
        database: Database,
        accounts: AccountStore,
        threepids: ThreepidStore,
        passwords: Passwords,
        sessions: Sessions,
        limiter: RateLimiter,
        application_passwords: ApplicationPasswords,
        server_name: ServerName,
        password_login: bool = True,
        password_confirmation: bool = True,
        local_passwords: bool = True,
        plugins: Plugins | None = None,
        approvals: Approvals | None = None,
        validity: AccountValidity | None = None,
    ) -> None:
        """`local_passwords`: whether the passwords in this server's database are accepted."""
        self._clock = clock
        self.validity = validity or AccountValidity(clock=clock)
        self._plugins = plugins or Plugins()
        self._approvals = approvals
        self._database = database
        self._accounts = accounts
        self._threepids = threepids
        self._passwords = passwords
        self._sessions = sessions
        self._limiter = limiter
        self._attempts = PasswordAttempts(clock=clock, limiter=limiter)
        self._application_passwords = application_passwords
        self._server_name = server_name
        self.password_login = password_login
        """Whether people sign in with their own passwords."""
        self.password_confirmation = password_confirmation
        """Whether user-interactive authentication offers the password stage."""
        self.local_passwords = local_passwords
        self._other_passwords: list[ExternalPasswords] = []

    @property
    def accepts_passwords(self) -> bool:
        """Whether clients may sign in with an account password or an application password."""
        return self.password_login or self._application_passwords.enabled

    @property
    def in_login_flows(self) -> bool:
        """Whether `GET /login` lists the sign-in with a password."""
        return self.password_login or self._application_passwords.in_login_flows

    def add_external_passwords(self, other_passwords: ExternalPasswords) -> None:
        """Add a source of passwords, asked after the existing ones."""
        self._other_passwords.append(other_passwords)

    async def do_sign_in(
        self,
        name: str,
        password: str,
        address: str,
        *,
        device_id: DeviceID | None = None,
        device_name: str | None = None,
        refreshable: bool = False,
    ) -> NewSession:
        """Begin a session. `name`: localpart, user ID, `EmailAddress` or `PhoneNumber`.

        Raises `Forbidden`, `LimitExceeded`, `UserLocked`, `UserDeactivated`, `ExpiredAccount`,
        `UserAwaitingApproval`, and `Unrecognized` where password sign-in is disabled.
        """
        if not self.accepts_passwords:
            raise Unrecognized("This server has no sign-in with a password")
        for _ in range(_ATTEMPTS):
            with suppress(AuthenticationInvalidated):
                return await self._try_sign_in(
                    name,
                    password,
                    address,
                    device_id=device_id,
                    device_name=device_name,
                    refreshable=refreshable,
                )
        raise AuthenticationInvalidated

    async def _try_sign_in(
        self,
        name: str,
        password: str,
        address: str,
        *,
        device_id: DeviceID | None,
        device_name: str | None,
        refreshable: bool,
    ) -> NewSession:
        program = await self._application_passwords.find(password)
        if program is None:
            account = await self._check(name, password, address, own=self.password_login)
        else:
            account = await self._check(name, password, address, program=program)
        await self._check_account(
            account, "password" if program is None else "application_password", address
        )
        session = self._sessions.prepare(
            UserID(account.user_id),
            address=address,
            epoch=account.epoch,
            device_id=device_id,
            device_name=device_name,
            refreshable=refreshable,
        )

        def write(txn: WriteTransaction) -> None:
            if program is not None:
                self._application_passwords.check_device(txn, session, program)
            self._sessions.add(txn, session)
            if program is not None:
                self._application_passwords.record_use(txn, session, program)

        await self._database.write("begin_session", write)
        return session

    async def check_sign_in(self, name: str, password: str, address: str) -> AccountRow:
        """Return the account that may sign in with this name and password.

        Raises what `do_sign_in` raises.
        """
        if not self.password_login:
            raise Unrecognized("This server has no sign-in with a password")
        account = await self._check(name, password, address)
        await self._check_account(account, "password", address)
        return account

    async def _check_account(self, account: AccountRow, way: str, address: str) -> None:
        await self.check_usable(account, way, address)
        self._limiter.check(Limit.LOGIN_ACCOUNT, account.user_id)

    async def check_usable(self, account: AccountRow, way: str, address: str) -> None:
        """Check that an account, whose owner authenticated by this `way`, is usable now.

        Raises `UserDeactivated`, `UserLocked`, `ExpiredAccount`, `UserAwaitingApproval`,
        `Forbidden`.
        """
        try:
            if account.deactivated_ts is not None:
                raise UserDeactivated
            if account.locked:
                raise UserLocked(soft_logout=True)
            self.validity.check(account)
        except MatrixError as error:
            await self.do_record_refusal(UserID(account.user_id), address, error)
            raise
        await self.check_allowed(account.user_id, way, address)

    async def check_allowed(self, user_id: str, way: str, address: str) -> None:
        """Check that an account awaits no approval and that no plug-in refuses the sign-in.

        `way`: of authentication (see `Hooks.check_sign_in`). Raises `UserAwaitingApproval`,
        `Forbidden`.
        """
        try:
            if self._approvals is not None:
                await self._approvals.check(UserID(user_id))
            refusal = await self._plugins.check_sign_in(user_id, way, address)
            if refusal is not None:
                raise Forbidden(refusal)
        except (Forbidden, UserAwaitingApproval) as error:
            await self.do_record_refusal(UserID(user_id), address, error)
            raise

    async def do_record_refusal(
        self, user_id: UserID, address: str, why: MatrixError | str
    ) -> None:
        """Store an audit record: the user authenticated, but the sign-in was refused."""
        detail = why if isinstance(why, str) else _REFUSAL_REASONS.get(type(why), NOT_ALLOWED)
        await self._database.write(
            "record_login_refusal", self._record_refusal, user_id, address, detail
        )

    async def do_record_other_user(
        self, owner: UserID, address: str, operation: str, came: str
    ) -> None:
        """Store an audit record: another user (`came`) authenticated where `owner` was to confirm.

        `operation`: the operation to confirm, which was not carried out.
        """

        def write(txn: WriteTransaction) -> None:
            now = int(self._clock.seconds() * 1000)
            detail = f"{operation} ({came})"
            record_event(
                txn, owner, AuditEvent.CONFIRMATION_REFUSED, now, ip=address, detail=detail
            )

        await self._database.write("record_login_as_other_user", write)

    async def check_password(self, name: str, password: str, address: str) -> AccountRow:
        """Return the account with this name and password, for a confirmation by a signed-in user.

        A failure counts against the limit of sign-ins too. Raises `Forbidden`, `UserDeactivated`,
        `LimitExceeded`.
        """
        return await self._check(
            name,
            password,
            address,
            further_limits=[CountedAction(Limit.LOGIN, address_key(address))],
        )

    async def is_identifier_of(self, name: str, user_id: UserID) -> bool:
        """Return whether a name means this user: localpart, user ID, `EmailAddress` or
        `PhoneNumber`."""
        if isinstance(name, EmailAddress | PhoneNumber):
            return await self._threepids.get_owner(name.medium, name) == user_id
        return user_id in self._candidates(name)

    async def _check(
        self,
        name: str,
        password: str,
        address: str,
        *,
        own: bool = True,
        program: ApplicationPasswordRow | None = None,
        further_limits: Sequence[CountedAction] = (),
    ) -> AccountRow:
        """Check a name and password, with rate limits; return the account.

        `own`: whether account passwords are accepted. `program`: the application password that the
        password claims to be; then only it is accepted. `further_limits`: further limits that a
        failure counts against. Raises what `check_password` raises.
        """
        if isinstance(name, EmailAddress | PhoneNumber):
            owner = await self._threepids.get_owner(name.medium, name)
            candidates = [] if owner is None else [UserID(owner)]
        else:
            candidates = self._candidates(name)
        key = candidates[-1] if candidates else name[:_MAX_NAME_LENGTH]
        self._limiter.check_without_counting(Limit.LOGIN_FAILED, address_key(address))
        async with self._attempts.attempt(key, further_limits) as attempt:
            account = await self._find(
                name, candidates, password, address, own=own, program=program
            )
            if account is None:
                attempt.fail()
                # Count after the attempt, so that a class that signs in at once is not held back;
                # but count every failure, so that someone who guesses waits longer.
                self._limiter.count(Limit.LOGIN_FAILED, address_key(address), cost=_ADDRESS_COST)
                raise Forbidden(_WRONG_CREDENTIALS)
        return account

    async def _find(
        self,
        name: str,
        candidates: Sequence[UserID],
        password: str,
        address: str,
        *,
        own: bool,
        program: ApplicationPasswordRow | None,
    ) -> AccountRow | None:
        """Return the candidate account that has this password; None if it is wrong."""
        accounts = await self._accounts.get_accounts(candidates)
        account = next((accounts[user_id] for user_id in candidates if user_id in accounts), None)
        if program is not None:
            expected_hash = (
                program.password_hash
                if account is not None and program.user_id == account.user_id
                else None
            )
        else:
            expected_hash = (
                account.password_hash
                if account is not None and own and self.local_passwords
                else None
            )
        verdict = await self._passwords.verify(password, expected_hash, address)
        if account is None or not verdict.correct:
            # other sources know no telephone numbers: ask them for the owner of the number
            external_name = candidates[0] if isinstance(name, PhoneNumber) and candidates else name
            is_unknown_here = not candidates and (isinstance(name, PhoneNumber) or name[:1] == "@")
            ask = own and parse_application_password_id(password) is None and not is_unknown_here
            found = (
                await self._check_external(external_name, account, password, address)
                if ask
                else None
            )
            if found is None and account is not None:
                # do not wait, so that the response time does not reveal whether the account exists
                work = self._database.write(
                    "record_login_failure", self._record_failure, UserID(account.user_id), address
                )
                Deferred.fromCoroutine(work).addErrback(
                    lambda failure: self._log.failure("a failed sign-in was not recorded", failure)
                )
            return found
        if account.deactivated_ts is not None:
            await self.do_record_refusal(UserID(account.user_id), address, UserDeactivated())
            raise UserDeactivated
        if verdict.new_hash is not None and program is None:
            await self._database.write(
                "renew_password_hash",
                self._accounts.set_password_hash,
                account.user_id,
                verdict.new_hash,
                expected_hash,
            )
        return account

    async def _check_external(
        self, name: str, account: AccountRow | None, password: str, address: str
    ) -> AccountRow | None:
        if len(name) > _MAX_NAME_LENGTH or "\0" in name:
            return None
        for passwords in self._other_passwords:
            try:
                user_id = await passwords.check(name, account, password, address)
            except ExternalAccountRefused as refused:
                if refused.user_id is not None:
                    await self.do_record_refusal(refused.user_id, address, refused.error)
                raise refused.error from None
            if user_id is not None:
                return (await self._accounts.get_accounts([user_id]))[user_id]
        return None

    def _record_failure(self, txn: WriteTransaction, user_id: UserID, address: str) -> None:
        record_event(
            txn, user_id, AuditEvent.SIGN_IN_FAILED, int(self._clock.seconds() * 1000), ip=address
        )

    def _record_refusal(
        self, txn: WriteTransaction, user_id: UserID, address: str, why: str
    ) -> None:
        record_refusal(txn, user_id, int(self._clock.seconds() * 1000), why, ip=address)

    def parse_user_id(self, name: str) -> UserID | None:
        """Return the user ID for a name as typed.

        None for a user of another server, an invalid name, and an e-mail address or number.
        """
        if isinstance(name, EmailAddress | PhoneNumber):
            return None
        return next(iter(self._candidates(name)), None)

    def _candidates(self, name: str) -> list[UserID]:
        """Return the user IDs that a name can mean, best first: as typed, then in lower case."""
        if not name or len(name) > _MAX_NAME_LENGTH or "\0" in name:
            return []
        localpart = name
        if name.startswith("@"):
            localpart, _, domain = name[1:].partition(":")
            if domain != self._server_name:
                return []
        found = [f"@{localpart}:{self._server_name}", f"@{localpart.lower()}:{self._server_name}"]
        return [UserID(user_id) for user_id in dict.fromkeys(found)]


def parse_identifier(data: Mapping[str, object]) -> str:
    """Return the name in a request: a user name, an `EmailAddress` or a `PhoneNumber`.

    Also reads the deprecated top-level `user`, `medium` and `address`. Raises `BadJson`,
    `MissingParam`, and `Forbidden` for an unknown medium.
    """
    identifier = data.get("identifier")
    if identifier is None:
        older = "m.id.thirdparty" if "medium" in data or "address" in data else "m.id.user"
        identifier = {
            "type": older,
            **{key: data.get(key) for key in ("user", "medium", "address")},
        }
    if not isinstance(identifier, Mapping):
        raise BadJson("identifier must be an object")
    kind = identifier.get("type")
    if kind == "m.id.thirdparty" or (kind is None and "medium" in identifier):
        medium, address = identifier.get("medium"), identifier.get("address")
        if not isinstance(medium, str) or not isinstance(address, str):
            raise BadJson("identifier.medium and identifier.address must be strings")
        if medium == EMAIL:
            return EmailAddress(address.strip().lower()[:_MAX_NAME_LENGTH].replace("\0", ""))
        if medium == MSISDN:
            return parse_phone_identifier("", f"+{address.strip().removeprefix('+')}")
        raise Forbidden("Sign in with a user name, an e-mail address or a telephone number")
    if kind == "m.id.phone":
        country = identifier.get("country")
        # `number` is what older clients send
        number = identifier.get("phone", identifier.get("number"))
        if not isinstance(country, str) or not isinstance(number, str):
            raise BadJson("identifier.country and identifier.phone must be strings")
        return parse_phone_identifier(country, number)
    if kind != "m.id.user":
        raise BadJson("identifier.type must be m.id.user")
    user = identifier.get("user")
    if user is None:
        raise MissingParam("identifier.user is missing")
    if not isinstance(user, str):
        raise BadJson("identifier.user must be a string")
    return user


def parse_phone_identifier(country: str, number: str) -> PhoneNumber:
    """Parse a number as people write it (`parse_phone_number`).

    Return an empty one, which no account has, if it is invalid.
    """
    try:
        return PhoneNumber(to_msisdn(parse_phone_number(country, number)))
    except InvalidNumber:
        return PhoneNumber("")
