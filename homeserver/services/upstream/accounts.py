"""Maps an identity of a provider to an account of this server.

Laws:
- If the identity has a link, the link decides which account signs in. So a name that the provider
  changes later does not move a user to another account.
- An account that was not created by a sign-in with the provider is linked only if the configuration
  allows it, and to at most one subject of each provider.
- A new account, its link, display name and e-mail addresses are one write. The avatar follows.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Final, Protocol

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.protocol.errors import (
    ExpiredAccount,
    Forbidden,
    MatrixError,
    UserDeactivated,
    UserLocked,
)
from federation.protocol.ids import ServerName, UserID, parse_new_user_id
from homeserver.services.accounts.registration import Registration, RegistrationRequest
from homeserver.services.audit.audit import AuditEvent, record_event
from homeserver.services.login.account_validity import AccountValidity
from homeserver.services.login.uia_stages import PASSWORD, SSO
from homeserver.services.upstream.identity import (
    ProviderInfo,
    RefusalReason,
    SignInRefused,
    UpstreamIdentity,
    hash_profile,
    map_to_localpart,
)
from storage.accounts.accounts import AccountRow, AccountStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.upstream.external_ids import ExternalIdRow, ExternalIdStore

PLUGIN_PREFIX: Final = "plugin-"
"""Prefix of the provider IDs of plug-ins."""


class ProfileNames(Protocol):
    """Changes display names."""

    async def do_set_display_name(self, user_id: UserID, name: str) -> None:
        """Raises `MatrixError`."""
        ...


class ProviderEmails(Protocol):
    """Stores the e-mail addresses of users."""

    async def do_set_provider_emails(
        self, addresses: Mapping[UserID, Sequence[str]], provider: str
    ) -> Set[UserID]:
        """Set the addresses that this provider vouches for, replacing those it vouched for before.
        Return the users with an address that belongs to another account."""
        ...


class AvatarImporter(Protocol):
    """Imports avatars."""

    async def do_import(self, user_id: UserID, address: str) -> None:
        """Fetch a picture and set it as the user's avatar. Raises nothing."""
        ...


class UpstreamAccounts:
    """Finds, links and creates accounts."""

    log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        database: Database,
        accounts: AccountStore,
        links: ExternalIdStore,
        registration: Registration,
        profiles: ProfileNames,
        avatars: AvatarImporter,
        addresses: ProviderEmails,
        server_name: ServerName,
        validity: AccountValidity,
    ) -> None:
        self._validity = validity
        self._clock = clock
        self._database = database
        self._accounts = accounts
        self._links = links
        self._registration = registration
        self._profiles = profiles
        self._pictures = avatars
        self._addresses = addresses
        self._server_name = server_name

    async def find(self, info: ProviderInfo, identity: UpstreamIdentity) -> AccountRow | None:
        """Return the account of this identity, linking one of the same name if allowed; None if
        there is none yet. Raises `SignInRefused` if the account may not be used."""
        link = await self._links.get_link(info.provider_id, identity.subject)
        if link is not None:
            account = (await self._accounts.get_accounts([link.user_id])).get(link.user_id)
            if account is None:
                raise SignInRefused(
                    RefusalReason.NO_ACCOUNT, f"{link.user_id} is linked, but does not exist"
                )
            return self.check_usable(account)
        user_id = self._same_name(info, identity)
        account = (
            None if user_id is None else (await self._accounts.get_accounts([user_id])).get(user_id)
        )
        if user_id is None or account is None:
            return None
        if account.appservice_id is not None or self._registration.is_reserved(user_id):
            raise SignInRefused(RefusalReason.TAKEN, f"{user_id} belongs to an application service")
        self.check_usable(account)
        row = self._link(info, identity, user_id)

        def write(txn: WriteTransaction) -> bool:
            added = self._links.add_link(txn, row)
            if added:
                record_event(
                    txn, user_id, AuditEvent.LINKED, row.linked_ts, detail=info.provider_id
                )
            return added

        if not await self._database.write("link_account", write):
            raise SignInRefused(
                RefusalReason.TAKEN,
                f"{user_id} is linked to another subject of {info.provider_id}",
                user_id=user_id,
            )
        self.log.info(
            "{user_id} is linked to {provider}", user_id=user_id, provider=info.provider_id
        )
        return account

    async def get_epoch(self, info: ProviderInfo, identity: UpstreamIdentity) -> int | None:
        """Return the credential epoch of the account that `find` would return, without linking it;
        None if there is none."""
        link = await self._links.get_link(info.provider_id, identity.subject)
        user_id = self._same_name(info, identity) if link is None else link.user_id
        account = (
            None if user_id is None else (await self._accounts.get_accounts([user_id])).get(user_id)
        )
        return None if account is None else account.epoch

    def _same_name(self, info: ProviderInfo, identity: UpstreamIdentity) -> UserID | None:
        """Return the user ID of this identity's name if an existing account may be linked."""
        if not info.allow_existing_users or identity.localpart is None:
            return None
        try:
            return parse_new_user_id(map_to_localpart(identity.localpart), self._server_name)
        except MatrixError:
            return None

    async def get_refused_user(self, refused: SignInRefused) -> UserID | None:
        """Return the account whose owner was refused; None if nobody authenticated as its owner."""
        if refused.user_id is not None or refused.person is None:
            return refused.user_id
        link = await self._links.get_link(*refused.person)
        return None if link is None else UserID(link.user_id)

    def check_usable(self, account: AccountRow) -> AccountRow:
        """Return the account. Raises `SignInRefused` if it is deactivated, locked or expired."""
        if account.deactivated_ts is not None:
            raise SignInRefused(
                RefusalReason.DEACTIVATED,
                f"{account.user_id} is deactivated",
                user_id=account.user_id,
            )
        if account.locked:
            raise SignInRefused(
                RefusalReason.LOCKED, f"{account.user_id} is locked", user_id=account.user_id
            )
        if self._validity.is_expired(account.expires_ts):
            raise SignInRefused(
                RefusalReason.EXPIRED, f"{account.user_id} has expired", user_id=account.user_id
            )
        return account

    async def check_free(self, username: str) -> UserID:
        """Return the user ID of an available name. Raises `InvalidUsername`, `Exclusive`,
        `UserInUse`."""
        return await self._registration.check_username(username)

    async def do_create(
        self, info: ProviderInfo, identity: UpstreamIdentity, username: str, languages: str = ""
    ) -> UserID:
        """Create an account. Raises `InvalidUsername`, `Exclusive`, `UserInUse`, and
        `SignInRefused` if the provider may create none."""
        if not info.enable_registration:
            raise SignInRefused(RefusalReason.NO_ACCOUNT)

        def link(txn: WriteTransaction, user_id: UserID) -> None:
            # without a hash, the next directory check retries addresses that others have
            row = msgspec.structs.replace(
                self._link(info, identity, user_id),
                synced_name_hash=hash_profile(identity)[0],
                synced_addresses_hash="",
            )
            if not self._links.add_link(txn, row):
                raise SignInRefused(
                    RefusalReason.OLD, f"{identity.subject} got another account in the meantime"
                )
            record_event(txn, user_id, AuditEvent.LINKED, row.linked_ts, detail=info.provider_id)

        request = RegistrationRequest(
            username=username,
            display_name=identity.display_name,
            emails=identity.emails,
            asserted_by=info.provider_id,
            languages=languages,
        )
        user_id = await self._registration.do_register_for_provider(request, link)
        self.log.info(
            "{user_id} was created for {provider}", user_id=user_id, provider=info.provider_id
        )
        if identity.picture is not None:
            await self._pictures.do_import(user_id, identity.picture)
        return user_id

    async def do_create_with_suggested_name(
        self, info: ProviderInfo, identity: UpstreamIdentity, languages: str = ""
    ) -> UserID | None:
        """Create an account with the name that the provider suggests; None if the user must confirm
        it, or it is invalid or taken. Raises `SignInRefused`."""
        if identity.localpart is None or identity.confirm_localpart:
            return None
        try:
            return await self.do_create(
                info, identity, map_to_localpart(identity.localpart), languages
            )
        except MatrixError:
            return None

    async def do_update_profiles(
        self, info: ProviderInfo, people: Mapping[UserID, UpstreamIdentity]
    ) -> Set[UserID]:
        """Import names and avatars user by user, and all e-mail addresses in one write, so that
        users can swap addresses. Return the users with an address that belongs to another account.
        Raises nothing, so that a failed import does not refuse a user."""
        for user_id, identity in people.items():
            if identity.display_name is not None:
                try:
                    await self._profiles.do_set_display_name(user_id, identity.display_name)
                except MatrixError as error:
                    self.log.warn(
                        "the display name of {user_id} was not imported: {why}",
                        user_id=user_id,
                        why=error.text,
                    )
            if identity.picture is not None:
                await self._pictures.do_import(user_id, identity.picture)
        addresses = {user_id: identity.emails for user_id, identity in people.items()}
        return await self._addresses.do_set_provider_emails(addresses, info.provider_id)

    def _link(self, info: ProviderInfo, identity: UpstreamIdentity, user_id: str) -> ExternalIdRow:
        return ExternalIdRow(
            info.provider_id, identity.subject, user_id, int(self._clock.seconds() * 1000)
        )


class UpstreamStages:
    """Returns the UIA stages with which linked users confirm operations. `in_browsers` and
    `by_password` are IDs of providers."""

    def __init__(
        self,
        *,
        links: ExternalIdStore,
        in_browsers: Sequence[str],
        by_password: Sequence[str],
        by_plugins: bool,
    ) -> None:
        """`by_plugins`: whether plug-ins check passwords too."""
        self._by_plugins = by_plugins
        self._links = links
        self._in_browsers = frozenset(in_browsers)
        self._by_password = frozenset(by_password)

    async def get_stages(self, user_id: UserID) -> Sequence[str]:
        """Implement `OtherProofs.get_stages`."""
        if not self._in_browsers and not self._by_password and not self._by_plugins:
            return []
        providers = {
            link.provider
            for link in (await self._links.get_links_of_users([user_id])).get(user_id, [])
        }
        by_plugin = self._by_plugins and any(
            provider.startswith(PLUGIN_PREFIX) for provider in providers
        )
        password = [PASSWORD] if by_plugin or providers & self._by_password else []
        return [*password, *([SSO] if providers & self._in_browsers else [])]


def refusal_to_error(refused: SignInRefused) -> MatrixError:
    """Return the error that a client receives for a refusal."""
    if refused.reason is RefusalReason.DEACTIVATED:
        return UserDeactivated()
    if refused.reason is RefusalReason.LOCKED:
        return UserLocked(soft_logout=True)
    if refused.reason is RefusalReason.EXPIRED:
        return ExpiredAccount()
    return Forbidden("You may not sign in here; contact the administrators of this server")
