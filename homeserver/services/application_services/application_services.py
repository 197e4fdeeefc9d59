"""Application services (bridges, bots): their namespaces, accounts and requests.

Laws:
- An application service acts only for its own user and for accounts in its `users` namespaces. It
  never acts for the user of another application service, or for accounts in an exclusive namespace
  of another one.
- Only the application service that has an exclusive namespace can create accounts or aliases in
  it. This holds for every API, also for administrators.
- A namespace is a regular expression that has to match from the start of a user ID or alias, but
  not to its end.

The server sends no transactions to application services.

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
from homeserver.services.accounts.registration import NewAccount, Registration, RegistrationRequest
from homeserver.services.login.account_validity import AccountValidity
from homeserver.services.login.password_login import SignIn
from homeserver.services.login.sessions import NewSession, Sessions
from homeserver.services.tokens.secret_tokens import hash_token
from storage.accounts.accounts import AccountRow, AccountStore
from storage.devices.devices import DeviceStore

LOGIN_TYPE = "m.login.application_service"


class UnknownDevice(MatrixError):
    """The request names a device that the user does not have."""

    errcode, status, default_text = "M_UNKNOWN_DEVICE", 400, "The user has no such device"


class NamePattern(msgspec.Struct, frozen=True):
    """A namespace of user IDs or aliases."""

    pattern: re.Pattern[str]
    exclusive: bool


class ApplicationService(msgspec.Struct, frozen=True):
    """A registered application service."""

    service_id: str
    sender: UserID
    users: tuple[NamePattern, ...]
    aliases: tuple[NamePattern, ...]
    rate_limited: bool

    def acts_for(self, user_id: str) -> bool:
        """Return whether this is the service's own user, or one in its namespaces."""
        return user_id == self.sender or any(
            namespace.pattern.match(user_id) for namespace in self.users
        )


class ApplicationServices:
    """The registered application services and their namespaces."""

    def __init__(self, *, files: Sequence[RegistrationFile], server_name: ServerName) -> None:
        self._server_name = server_name
        self._by_token = {
            hash_token(file.as_token): _service_of(file, server_name) for file in files
        }
        self._by_id = {service.service_id: service for service in self._by_token.values()}

    def __bool__(self) -> bool:
        return bool(self._by_id)

    def find(self, token: str) -> ApplicationService | None:
        """Return the application service with this token."""
        return self._by_token.get(hash_token(token)) if self._by_token else None

    def is_reserved(self, user_id: UserID) -> bool:
        """Return whether the name is reserved for an application service (`ReservedNames`)."""
        return any(
            user_id == service.sender or _is_exclusive(service.users, user_id)
            for service in self._by_id.values()
        )

    def may_use(self, service: ApplicationService, user_id: str) -> bool:
        """Return whether a service may act for this user: no other service has the user
        exclusively."""
        others = (other for other in self._by_id.values() if other is not service)
        return service.acts_for(user_id) and not any(
            user_id == other.sender or _is_exclusive(other.users, user_id) for other in others
        )

    def check_user(self, service: ApplicationService, user_id: UserID) -> None:
        """Raise `Exclusive` if a service may not create or sign in this account."""
        if not self.may_use(service, user_id):
            raise Exclusive("The user is not in the namespaces of the application service")

    def check_alias(self, caller: Requester, alias: RoomAlias) -> bool:
        """Check that namespaces let the caller add or remove an alias. Return True if they give the
        caller full control. Raises `Exclusive`."""
        own = None if caller.appservice_id is None else self._by_id.get(caller.appservice_id)
        if any(
            _is_exclusive(service.aliases, alias)
            for service in self._by_id.values()
            if service is not own
        ):
            raise Exclusive("The alias belongs to an application service")
        if own is None:
            return False
        if not any(namespace.pattern.match(alias) for namespace in own.aliases):
            raise Exclusive("The alias is not in the namespaces of the application service")
        return True


class ApplicationServiceRequests:
    """Requests of application services: identity assertion, registration and login."""

    def __init__(
        self,
        *,
        services: ApplicationServices,
        accounts: AccountStore,
        devices: DeviceStore,
        registration: Registration,
        sign_in: SignIn,
        sessions: Sessions,
        validity: AccountValidity,
        token_in_query: bool = True,
    ) -> None:
        """`token_in_query`: whether a token in the query string counts."""
        self._token_in_query = token_in_query
        self._services = services
        self._accounts = accounts
        self._devices = devices
        self._registration = registration
        self._sign_in = sign_in
        self._sessions = sessions
        self._validity = validity

    @property
    def has_services(self) -> bool:
        """Whether any application service is registered."""
        return bool(self._services)

    async def get_requester(
        self, token: str, user_id: str | None, device_id: str | None, context: RequestContext
    ) -> Requester | None:
        """Return the requester of a request with the token of an application service; None for
        another token. Raises `Forbidden`, `InvalidParam`, `UnknownDevice`."""
        service = self._services.find(token)
        if service is None:
            return None
        acting_as = service.sender if user_id is None else parse_user_id(user_id)
        if not self._services.may_use(service, acting_as):
            raise Forbidden("The user is not in the namespaces of the application service")
        account = (await self._accounts.get_accounts([acting_as])).get(acting_as)
        if account is None and acting_as == service.sender:
            account = await self._register_sender(service)
        if account is None or account.deactivated_ts is not None:
            raise Forbidden("The application service has not registered this user")
        if account.approval_pending_ts is not None:
            raise Forbidden("The account of this user is waiting for approval")
        device = None if device_id is None else parse_device_id(device_id)
        if device is not None and await self._devices.get_device(acting_as, device) is None:
            raise UnknownDevice
        return Requester(
            user_id=acting_as,
            device_id=device,
            token_nid=0,
            is_guest=account.is_guest,
            is_admin=account.is_admin,
            appservice_id=service.service_id,
            is_locked=account.locked,
            is_suspended=account.suspended,
            is_shadow_banned=account.shadow_banned,
            is_expired=self._validity.is_expired(account.expires_ts),
            rate_limited=service.rate_limited and acting_as != service.sender,
        )

    async def _register_sender(self, service: ApplicationService) -> AccountRow | None:
        request = RegistrationRequest(username=localpart_of(service.sender), inhibit_login=True)
        with suppress(UserInUse):  # another request has just created it
            await self._registration.do_register_for_service(request, service.service_id)
        return (await self._accounts.get_accounts([service.sender])).get(service.sender)

    def find_token(self, context: RequestContext, in_query: str) -> str | None:
        """Return the token in the header or query string of a request. Used for endpoints that need
        no token, where authentication does not read it. spec:
        client-server-api#using-access-tokens"""
        scheme, _, token = (context.header("authorization") or "").partition(" ")
        if scheme:
            return token.strip() or None if scheme.lower() == "bearer" else None
        return in_query or None if self._token_in_query else None

    async def do_register(self, token: str | None, request: RegistrationRequest) -> NewAccount:
        """Create an account without a password for an application service. Raises `MissingToken`,
        `UnknownToken`, `MissingParam`, `Exclusive`, `UserInUse`, `InvalidUsername`."""
        service = self._service_of(token)
        if request.username is None:
            raise MissingParam("username is missing")
        user_id = self._registration.parse_username(request.username)
        self._services.check_user(service, user_id)
        return await self._registration.do_register_for_service(request, service.service_id)

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
        """Start a session of a user of an application service, without a password. Raises
        `MissingToken`, `Exclusive`, `Forbidden` (also for a token of no application service),
        `UserLocked`, `ExpiredAccount`, `UserDeactivated`.

        spec: client-server-api#appservice-login
        """
        try:
            service = self._service_of(token)
        except UnknownToken:
            raise Forbidden("The access token does not belong to an application service") from None
        user_id = self._sign_in.parse_user_id(name)
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
            epoch=account.epoch,
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


def _is_exclusive(namespaces: Sequence[NamePattern], name: str) -> bool:
    return any(namespace.exclusive and namespace.pattern.match(name) for namespace in namespaces)


def _service_of(file: RegistrationFile, server_name: ServerName) -> ApplicationService:
    users, aliases = (
        tuple(NamePattern(re.compile(each.regex), each.exclusive) for each in namespaces)
        for namespaces in (file.namespaces.users, file.namespaces.aliases)
    )
    sender = UserID(f"@{file.sender_localpart}:{server_name}")
    return ApplicationService(file.id, sender, users, aliases, file.rate_limited is not False)
