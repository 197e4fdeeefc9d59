"""Signing in with a password: who is meant, is the password right, may the account be used.

Laws:
- An unknown user, one without a password and a wrong password look alike, and take the same time.
- Failures count against the account and the address; who has too many waits, with the right
  password too. Against the account an attempt counts from when it begins
  (`homeserver/services/login/password_attempts.py`).
- What an account may not do any more is told only to who has shown its password.
- A password that was made for a program (`homeserver/services/login/application_passwords.py`)
  begins a session in the client-server API, and does nothing else: it opens no page and confirms
  nothing. It is asked of nobody else.

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
from homeserver.http.rate_limits import Counted, RateLimiter, address_key
from homeserver.services.audit.audit import Happened, note, note_refusal
from homeserver.services.login.account_validity import AccountValidity
from homeserver.services.login.application_passwords import ApplicationPasswords
from homeserver.services.login.approvals import Approvals
from homeserver.services.login.credential_epoch import ProofEnded
from homeserver.services.login.password_attempts import PasswordAttempts
from homeserver.services.login.passwords import Passwords
from homeserver.services.login.sessions import NewSession, Sessions
from homeserver.services.plugins.hooks import Plugins
from homeserver.services.threepids.phone_validation import (
    InvalidNumber,
    digits_of,
    parse_phone_number,
)
from homeserver.services.threepids.validation import EMAIL, MSISDN
from homeserver.services.tokens.secret_tokens import application_password_id
from storage.accounts.accounts import AccountRow, AccountStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.login.application_passwords import ApplicationPasswordRow
from storage.threepids.threepids import ThreepidStore

_WRONG: Final = "Wrong user name or password"
_LONGEST_NAME: Final = 255
_ATTEMPTS: Final = 3
"""At a sign-in, where the account changes while the password is checked: it is checked again,
against what stands then."""
_COST_FOR_ADDRESS: Final = 0.1
"""A failure counts less against the address than against the account: a whole office may stand
behind one address."""

NOT_ALLOWED: Final = "not_allowed"
_WHY: Final[Mapping[type[MatrixError], str]] = {
    UserDeactivated: "deactivated",
    UserLocked: "locked",
    ExpiredAccount: "expired",
    UserAwaitingApproval: "awaiting_approval",
    Forbidden: NOT_ALLOWED,
}
"""Words of records: `Reason` of `homeserver/services/upstream/identity.py` has the same."""


class EmailAddress(str):
    """A name that is an e-mail address, in small letters."""

    __slots__ = ()
    medium: Final = EMAIL


class PhoneNumber(str):
    """A name that is a telephone number, in the digits of E.164."""

    __slots__ = ()
    medium: Final = MSISDN


class RefusedElsewhere(Exception):
    """A password that is not kept here was right, and the account may not be used. `user_id`: whose
    it is."""

    def __init__(self, user_id: UserID | None, error: MatrixError) -> None:
        super().__init__(error.text)
        self.user_id = user_id
        self.error = error


class OtherPasswords(Protocol):
    """Passwords that are not kept here."""

    async def check(
        self, name: str, account: AccountRow | None, password: str, address: str
    ) -> UserID | None:
        """Whose they are; None where nobody knows them. `account`: the one that the name means
        here, if any; `address`: whence it is asked. Raises `MatrixError` where nobody can say,
        `RefusedElsewhere` where the account may not be used."""
        ...


class SignIn:
    """Checks passwords and begins sessions with them."""

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        database: Database,
        accounts: AccountStore,
        threepids: ThreepidStore,
        passwords: Passwords,
        sessions: Sessions,
        limiter: RateLimiter,
        application_passwords: ApplicationPasswords,
        *,
        server_name: ServerName,
        password_login: bool = True,
        password_confirmation: bool = True,
        own_passwords: bool = True,
        plugins: Plugins | None = None,
        approvals: Approvals | None = None,
        validity: AccountValidity | None = None,
    ) -> None:
        """`own_passwords`: those that are kept here count."""
        self._clock = clock
        self.validity = validity or AccountValidity(clock)
        self._plugins = plugins or Plugins()
        self._approvals = approvals
        self._database = database
        self._accounts = accounts
        self._threepids = threepids
        self._passwords = passwords
        self._sessions = sessions
        self._limiter = limiter
        self._attempts = PasswordAttempts(clock, limiter)
        self._application_passwords = application_passwords
        self._server_name = server_name
        self.password_login = password_login
        """Whether people sign in with passwords that are theirs."""
        self.password_confirmation = password_confirmation
        """Whether a password confirms, in user-interactive authentication, who somebody is."""
        self.own_passwords = own_passwords
        self._other_passwords: list[OtherPasswords] = []

    @property
    def takes_passwords(self) -> bool:
        """Whether clients may sign in with a password: people's own, or one that was made for a
        program."""
        return self.password_login or self._application_passwords.enabled

    @property
    def is_told_to_clients(self) -> bool:
        """Whether clients are to hear that there is a sign-in with a password."""
        return self.password_login or self._application_passwords.in_login_flows

    def ask_too(self, other_passwords: OtherPasswords) -> None:
        """From now on let these count too, after those that do."""
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
        """Begin a session. `name`: localpart, user id, `EmailAddress` or `PhoneNumber`. Raises
        `Forbidden`, `LimitExceeded`, `UserLocked`, `UserDeactivated`, `ExpiredAccount`,
        `UserAwaitingApproval`, `Unrecognized` where nobody signs in with passwords."""
        if not self.takes_passwords:
            raise Unrecognized("This server has no sign-in with a password")
        for _ in range(_ATTEMPTS):
            with suppress(ProofEnded):
                return await self._try_sign_in(
                    name,
                    password,
                    address,
                    device_id=device_id,
                    device_name=device_name,
                    refreshable=refreshable,
                )
        raise ProofEnded

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
            era=account.era,
            device_id=device_id,
            device_name=device_name,
            refreshable=refreshable,
        )

        def write(txn: WriteTransaction) -> None:
            if program is not None:
                self._application_passwords.check_device(txn, session, program)
            self._sessions.add(txn, session)
            if program is not None:
                self._application_passwords.note_use(txn, session, program)

        await self._database.write("begin_session", write)
        return session

    async def check_sign_in(self, name: str, password: str, address: str) -> AccountRow:
        """The account of who may sign in with this name and password. Raises as `do_sign_in`."""
        if not self.password_login:
            raise Unrecognized("This server has no sign-in with a password")
        account = await self._check(name, password, address)
        await self._check_account(account, "password", address)
        return account

    async def _check_account(self, account: AccountRow, way: str, address: str) -> None:
        await self.check_usable(account, way, address)
        self._limiter.check(Limit.LOGIN_ACCOUNT, account.user_id)

    async def check_usable(self, account: AccountRow, way: str, address: str) -> None:
        """Whether an account whose owner has proved who they are, in this `way`, may be used now.
        Raises `UserDeactivated`, `UserLocked`, `ExpiredAccount`, `Forbidden`."""
        try:
            if account.deactivated_ts is not None:
                raise UserDeactivated
            if account.locked:
                raise UserLocked(soft_logout=True)
            self.validity.check(account)
        except MatrixError as error:
            await self.do_note_refusal(UserID(account.user_id), address, error)
            raise
        await self.check_allowed(account.user_id, way, address)

    async def check_allowed(self, user_id: str, way: str, address: str) -> None:
        """Whether somebody may begin a session who has proved who they are, in this `way` (see
        `Hooks.check_sign_in`): they need not wait, and plug-ins let them in. Raises
        `UserAwaitingApproval`, `Forbidden`."""
        try:
            if self._approvals is not None:
                await self._approvals.check(UserID(user_id))
            objection = await self._plugins.check_sign_in(user_id, way, address)
            if objection is not None:
                raise Forbidden(objection)
        except (Forbidden, UserAwaitingApproval) as error:
            await self.do_note_refusal(UserID(user_id), address, error)
            raise

    async def do_note_refusal(self, user_id: UserID, address: str, why: MatrixError | str) -> None:
        """Keep a record that somebody has proved who they are, and was let in nowhere."""
        detail = why if isinstance(why, str) else _WHY.get(type(why), NOT_ALLOWED)
        await self._database.write("note_refusal", self._note_refusal, user_id, address, detail)

    async def do_note_other_person(
        self, owner: UserID, address: str, operation: str, came: str
    ) -> None:
        """Keep a record that somebody else (`came`) has proved who they are, where `owner` was to
        confirm an operation."""

        def write(txn: WriteTransaction) -> None:
            now = int(self._clock.seconds() * 1000)
            detail = f"{operation} ({came})"
            note(txn, owner, Happened.CONFIRMATION_REFUSED, now, ip=address, detail=detail)

        await self._database.write("note_other_person", write)

    async def check_password(self, name: str, password: str, address: str) -> AccountRow:
        """The account whose name and own password these are, where somebody who is signed in
        confirms something. A failure counts like a sign-in. Raises `Forbidden`, `UserDeactivated`,
        `LimitExceeded`."""
        return await self._check(
            name, password, address, also=[Counted(Limit.LOGIN, address_key(address))]
        )

    async def is_name_of(self, name: str, user_id: UserID) -> bool:
        """Whether somebody names themself so: by a local part, user id, `EmailAddress` or
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
        also: Sequence[Counted] = (),
    ) -> AccountRow:
        """As `check_password`. `own`: whether people's own passwords count; `program`: the one that
        it claims to be of those made for programs, which counts alone; `also`: where else a failure
        counts."""
        if isinstance(name, EmailAddress | PhoneNumber):
            owner = await self._threepids.get_owner(name.medium, name)
            candidates = [] if owner is None else [UserID(owner)]
        else:
            candidates = self._candidates(name)
        key = candidates[-1] if candidates else name[:_LONGEST_NAME]
        self._limiter.check_only(Limit.LOGIN_FAILED, address_key(address))
        async with self._attempts.attempt(key, also) as attempt:
            account = await self._find(
                name, candidates, password, address, own=own, program=program
            )
            if account is None:
                attempt.fail()
                # Afterwards, lest a class that signs in at once be held back; but all of them, so
                # that who guesses waits the longer.
                self._limiter.count(
                    Limit.LOGIN_FAILED, address_key(address), cost=_COST_FOR_ADDRESS
                )
                raise Forbidden(_WRONG)
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
        """The account among these whose password it is; None for a wrong one."""
        accounts = await self._accounts.get_accounts(candidates)
        account = next((accounts[user_id] for user_id in candidates if user_id in accounts), None)
        if program is not None:
            known = (
                program.password_hash
                if account is not None and program.user_id == account.user_id
                else None
            )
        else:
            known = (
                account.password_hash
                if account is not None and own and self.own_passwords
                else None
            )
        verdict = await self._passwords.verify(password, known, address)
        if account is None or not verdict.correct:
            # others know nobody by a number: they are asked for whoever has it
            asked = candidates[0] if isinstance(name, PhoneNumber) and candidates else name
            is_nobody = not candidates and (isinstance(name, PhoneNumber) or name[:1] == "@")
            ask = own and application_password_id(password) is None and not is_nobody
            found = await self._ask_others(asked, account, password, address) if ask else None
            if found is None and account is not None:
                # not waited for, so that the time tells nothing of who exists
                work = self._database.write(
                    "note_failure", self._note_failure, UserID(account.user_id), address
                )
                Deferred.fromCoroutine(work).addErrback(
                    lambda failure: self._log.failure("a failed sign-in was not recorded", failure)
                )
            return found
        if account.deactivated_ts is not None:
            await self.do_note_refusal(UserID(account.user_id), address, UserDeactivated())
            raise UserDeactivated
        if verdict.new_hash is not None and program is None:
            await self._database.write(
                "renew_password_hash",
                self._accounts.set_password_hash,
                account.user_id,
                verdict.new_hash,
                known,
            )
        return account

    async def _ask_others(
        self, name: str, account: AccountRow | None, password: str, address: str
    ) -> AccountRow | None:
        if len(name) > _LONGEST_NAME or "\0" in name:
            return None
        for passwords in self._other_passwords:
            try:
                user_id = await passwords.check(name, account, password, address)
            except RefusedElsewhere as refused:
                if refused.user_id is not None:
                    await self.do_note_refusal(refused.user_id, address, refused.error)
                raise refused.error from None
            if user_id is not None:
                return (await self._accounts.get_accounts([user_id]))[user_id]
        return None

    def _note_failure(self, txn: WriteTransaction, user_id: UserID, address: str) -> None:
        note(txn, user_id, Happened.SIGN_IN_FAILED, int(self._clock.seconds() * 1000), ip=address)

    def _note_refusal(self, txn: WriteTransaction, user_id: UserID, address: str, why: str) -> None:
        note_refusal(txn, user_id, int(self._clock.seconds() * 1000), why, ip=address)

    def as_user_id(self, name: str) -> UserID | None:
        """The user id that a name is, as it was typed; None for one of another server, or that
        nobody can have, and for an address."""
        if isinstance(name, EmailAddress | PhoneNumber):
            return None
        return next(iter(self._candidates(name)), None)

    def _candidates(self, name: str) -> list[UserID]:
        """The user ids that may be meant, best first: as it was typed, and in small letters."""
        if not name or len(name) > _LONGEST_NAME or "\0" in name:
            return []
        localpart = name
        if name.startswith("@"):
            localpart, _, domain = name[1:].partition(":")
            if domain != self._server_name:
                return []
        found = [f"@{localpart}:{self._server_name}", f"@{localpart.lower()}:{self._server_name}"]
        return [UserID(user_id) for user_id in dict.fromkeys(found)]


def parse_identifier(data: Mapping[str, object]) -> str:
    """Whom a request names: the `user` of an `m.id.user` identifier, or the older `user` beside it,
    an `EmailAddress` or a `PhoneNumber`. Raises `BadJson` and `MissingParam`.
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
            return EmailAddress(address.strip().lower()[:_LONGEST_NAME].replace("\0", ""))
        if medium == MSISDN:
            return phone_number("", f"+{address.strip().removeprefix('+')}")
        raise Forbidden(
            "This server knows people by their user names, e-mail addresses and telephone numbers only"
        )
    if kind == "m.id.phone":
        country = identifier.get("country")
        number = identifier.get(
            "phone", identifier.get("number")
        )  # `number` is what older clients send
        if not isinstance(country, str) or not isinstance(number, str):
            raise BadJson("identifier.country and identifier.phone must be strings")
        return phone_number(country, number)
    if kind != "m.id.user":
        raise BadJson("identifier.type must be m.id.user")
    user = identifier.get("user")
    if user is None:
        raise MissingParam("identifier.user is missing")
    if not isinstance(user, str):
        raise BadJson("identifier.user must be a string")
    return user


def phone_number(country: str, number: str) -> PhoneNumber:
    """A number as people write it (`parse_phone_number`); an empty one, which nobody has, where it
    is none."""
    try:
        return PhoneNumber(digits_of(parse_phone_number(country, number)))
    except InvalidNumber:
        return PhoneNumber("")
