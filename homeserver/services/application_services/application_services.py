"""Application services (bridges, bots): which names are theirs, and for whom they act.

Laws:
- An application service acts for its own user and for accounts in its `users` namespaces, and for
  nobody else.
- What is in an exclusive namespace is nobody else's to take, however an account or an alias comes
  to be.
- A namespace is a regular expression that fits from the beginning of a name; whether it goes to the
  end is for it to say.

No transactions are sent to application services here.

spec: application-service-api#identity-assertion, #server-admin-style-permissions
"""

import re
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from federation.api.request import RequestContext
from federation.protocol.errors import (
    Exclusive,
    Forbidden,
    MatrixError,
    MissingParam,
    MissingToken,
    UnknownToken,
    UserInUse,
)
from federation.protocol.ids import (
    DeviceID,
    RoomAlias,
    ServerName,
    UserID,
    localpart_of,
    parse_device_id,
    parse_user_id,
)
from homeserver.api.requester import Requester
from homeserver.config.registration_files import RegistrationFile
from homeserver.services.accounts.registration import Registered, Registration, Wish
from homeserver.services.login.account_validity import AccountValidity
from homeserver.services.login.password_login import SignIn
from homeserver.services.login.sessions import NewSession, Sessions
from homeserver.services.tokens.secret_tokens import hash_token
from storage.accounts.accounts import AccountRow, AccountStore
from storage.devices.devices import DeviceStore

LOGIN_TYPE = "m.login.application_service"


class UnknownDevice(MatrixError):
    errcode, status, default_text = "M_UNKNOWN_DEVICE", 400, "The user has no such device"


class Names(msgspec.Struct, frozen=True):
    """One namespace."""

    pattern: re.Pattern[str]
    exclusive: bool


class ApplicationService(msgspec.Struct, frozen=True):
    """One of them."""

    service_id: str
    sender: UserID
    users: tuple[Names, ...]
    aliases: tuple[Names, ...]
    rate_limited: bool

    def acts_for(self, user_id: str) -> bool:
        """Whether this user is its own, or in its namespaces."""
        return user_id == self.sender or any(names.pattern.match(user_id) for names in self.users)


class ApplicationServices:
    """All of them, and what is reserved for them."""

    def __init__(self, files: Sequence[RegistrationFile], server_name: ServerName) -> None:
        self._server_name = server_name
        self._by_token = {
            hash_token(file.as_token): _service_of(file, server_name) for file in files
        }
        self._by_id = {service.service_id: service for service in self._by_token.values()}

    def __bool__(self) -> bool:
        return bool(self._by_id)

    def find(self, token: str) -> ApplicationService | None:
        """Whose token it is."""
        return self._by_token.get(hash_token(token)) if self._by_token else None

    def is_reserved(self, user_id: UserID) -> bool:
        """Whether people may not take this name (`ReservedNames`)."""
        return any(
            user_id == service.sender or _is_exclusive(service.users, user_id)
            for service in self._by_id.values()
        )

    def may_use(self, service: ApplicationService, user_id: str) -> bool:
        """Whether a service acts for this user, who is no other's alone."""
        others = (other for other in self._by_id.values() if other is not service)
        return service.acts_for(user_id) and not any(
            user_id == other.sender or _is_exclusive(other.users, user_id) for other in others
        )

    def check_user(self, service: ApplicationService, user_id: UserID) -> None:
        """Whether a service may make, and sign in, such an account. Raises `Exclusive`."""
        if not self.may_use(service, user_id):
            raise Exclusive("The user is not in the namespaces of the application service")

    def check_alias(self, caller: Requester, alias: RoomAlias) -> bool:
        """Whether the caller may make or remove an alias, as far as namespaces go; True where they
        have full control over it. Raises `Exclusive`."""
        own = None if caller.appservice_id is None else self._by_id.get(caller.appservice_id)
        if any(
            _is_exclusive(service.aliases, alias)
            for service in self._by_id.values()
            if service is not own
        ):
            raise Exclusive("The alias belongs to an application service")
        if own is None:
            return False
        if not any(names.pattern.match(alias) for names in own.aliases):
            raise Exclusive("The alias is not in the namespaces of the application service")
        return True


class ActingServices:
    """Application services as callers: whom they act for, the accounts that they make, the sessions
    that they begin."""

    def __init__(
        self,
        services: ApplicationServices,
        accounts: AccountStore,
        devices: DeviceStore,
        registration: Registration,
        sign_in: SignIn,
        sessions: Sessions,
        validity: AccountValidity,
        *,
        token_in_query: bool = True,
    ) -> None:
        """`token_in_query`: whether tokens count that come in the address."""
        self._token_in_query = token_in_query
        self._services = services
        self._accounts = accounts
        self._devices = devices
        self._registration = registration
        self._sign_in = sign_in
        self._sessions = sessions
        self._validity = validity

    @property
    def are_there(self) -> bool:
        """Whether there are any."""
        return bool(self._services)

    async def get_requester(
        self, token: str, user_id: str | None, device_id: str | None, context: RequestContext
    ) -> Requester | None:
        """For whom a request with the token of an application service is made; None for another
        token. Raises `Forbidden`, `InvalidParam`, `UnknownDevice`."""
        service = self._services.find(token)
        if service is None:
            return None
        wanted = service.sender if user_id is None else parse_user_id(user_id)
        if not self._services.may_use(service, wanted):
            raise Forbidden("The user is not in the namespaces of the application service")
        account = (await self._accounts.get_accounts([wanted])).get(wanted)
        if account is None and wanted == service.sender:
            account = await self._make_sender(service)
        if account is None or account.deactivated_ts is not None:
            raise Forbidden("The application service has not registered this user")
        if account.awaiting_ts is not None:
            raise Forbidden("The account of this user waits to be approved")
        device = None if device_id is None else parse_device_id(device_id)
        if device is not None and await self._devices.get_device(wanted, device) is None:
            raise UnknownDevice
        return Requester(
            user_id=wanted,
            device_id=device,
            token_nid=0,
            is_guest=account.is_guest,
            is_admin=account.is_admin,
            appservice_id=service.service_id,
            is_locked=account.locked,
            is_suspended=account.suspended,
            is_shadow_banned=account.shadow_banned,
            is_expired=self._validity.is_over(account.expires_ts),
            rate_limited=service.rate_limited and wanted != service.sender,
        )

    async def _make_sender(self, service: ApplicationService) -> AccountRow | None:
        wish = Wish(username=localpart_of(service.sender), inhibit_login=True)
        with suppress(UserInUse):  # another request has just made it
            await self._registration.do_register_for_service(wish, service.service_id)
        return (await self._accounts.get_accounts([service.sender])).get(service.sender)

    def find_token(self, context: RequestContext, in_query: str) -> str | None:
        """The token that a request shows, in its header or in its address, where people come
        without one, so that the guard does not look. spec: client-server-api#using-access-tokens"""
        scheme, _, token = (context.header("authorization") or "").partition(" ")
        if scheme:
            return token.strip() or None if scheme.lower() == "bearer" else None
        return in_query or None if self._token_in_query else None

    async def do_register(self, token: str | None, wish: Wish) -> Registered:
        """Make an account without a password, for an application service. Raises `MissingToken`,
        `UnknownToken`, `MissingParam`, `Exclusive`, `UserInUse`, `InvalidUsername`."""
        service = self._service_of(token)
        if wish.username is None:
            raise MissingParam("username is missing")
        user_id = self._registration.parse_username(wish.username)
        self._services.check_user(service, user_id)
        return await self._registration.do_register_for_service(wish, service.service_id)

    async def do_sign_in(
        self,
        token: str | None,
        name: str,
        address: str,
        *,
        device_id: DeviceID | None = None,
        device_name: str | None = None,
        refreshable: bool = False,
    ) -> NewSession:
        """Begin a session of a user of an application service, who has no password. Raises
        `MissingToken`, `Exclusive`, `Forbidden` (also for a token that is no application
        service's), `UserLocked`, `ExpiredAccount`, `UserDeactivated`.

        spec: client-server-api#appservice-login"""
        try:
            service = self._service_of(token)
        except UnknownToken:
            raise Forbidden("The access token is no application service's") from None
        user_id = self._sign_in.as_user_id(name)
        if user_id is None:
            raise Exclusive("The user is not in the namespaces of the application service")
        self._services.check_user(service, user_id)
        account = (await self._accounts.get_accounts([user_id])).get(user_id)
        if account is None:
            raise Forbidden("The application service has not registered this user")
        await self._sign_in.check_usable(account, "application_service", address)
        session = self._sessions.prepare(
            user_id,
            address=address,
            era=account.era,
            device_id=device_id,
            device_name=device_name,
            refreshable=refreshable,
        )
        await self._sessions.do_begin(session)
        return session

    def _service_of(self, token: str | None) -> ApplicationService:
        if token is None:
            raise MissingToken
        service = self._services.find(token)
        if service is None:
            raise UnknownToken
        return service


def _is_exclusive(namespaces: Sequence[Names], name: str) -> bool:
    return any(names.exclusive and names.pattern.match(name) for names in namespaces)


def _service_of(file: RegistrationFile, server_name: ServerName) -> ApplicationService:
    users, aliases = (
        tuple(Names(re.compile(each.regex), each.exclusive) for each in namespaces)
        for namespaces in (file.namespaces.users, file.namespaces.aliases)
    )
    sender = UserID(f"@{file.sender_localpart}:{server_name}")
    return ApplicationService(file.id, sender, users, aliases, file.rate_limited is not False)
