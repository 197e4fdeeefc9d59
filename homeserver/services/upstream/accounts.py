"""From somebody whom a provider names to an account of this server.

Laws:
- A link, once made, decides alone; what the provider says of names later moves nobody to another
  account.
- An account that was made otherwise is linked only where the configuration says so, and to one
  person of a provider.
- Account, link and first profile are one write.
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
from homeserver.services.accounts.registration import Registration, Wish
from homeserver.services.audit.audit import Happened, note
from homeserver.services.login.account_validity import AccountValidity
from homeserver.services.login.uia_stages import PASSWORD, SSO
from homeserver.services.upstream.identity import (
    ProviderInfo,
    Reason,
    Refused,
    UpstreamIdentity,
    compute_said,
    fit_localpart,
)
from storage.accounts.accounts import AccountRow, AccountStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.upstream.external_ids import ExternalIdRow, ExternalIdStore

PLUGIN_PREFIX: Final = "plugin-"
"""How the ids begin of what plug-ins know people by."""


class Profiles(Protocol):
    """Where names and pictures of people are changed."""

    async def do_set_display_name(self, user_id: UserID, name: str) -> None:
        """Raises `MatrixError`."""
        ...


class Addresses(Protocol):
    """Where e-mail addresses of people are kept."""

    async def do_set_vouched(
        self, said: Mapping[UserID, Sequence[str]], provider: str
    ) -> Set[UserID]:
        """Give accounts those for which this provider vouches, instead of those for which it did
        before; who could not have some since they are another account's."""
        ...


class Pictures(Protocol):
    """Takes pictures of people over."""

    async def do_take_over(self, user_id: UserID, address: str) -> None:
        """Fetch a picture and make it somebody's. Raises nothing."""
        ...


class UpstreamAccounts:
    """Finds, links and makes accounts."""

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        database: Database,
        accounts: AccountStore,
        links: ExternalIdStore,
        registration: Registration,
        profiles: Profiles,
        pictures: Pictures,
        addresses: Addresses,
        *,
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
        self._pictures = pictures
        self._addresses = addresses
        self._server_name = server_name

    async def find(self, info: ProviderInfo, identity: UpstreamIdentity) -> AccountRow | None:
        """The account of this person; None where they have none yet. Raises `Refused` where it may
        not be used."""
        link = await self._links.get_link(info.provider_id, identity.subject)
        if link is not None:
            account = (await self._accounts.get_accounts([link.user_id])).get(link.user_id)
            if account is None:
                raise Refused(
                    Reason.NO_ACCOUNT, f"{link.user_id} is linked, but there is no such account"
                )
            return self.check_usable(account)
        user_id = self._same_name(info, identity)
        account = (
            None if user_id is None else (await self._accounts.get_accounts([user_id])).get(user_id)
        )
        if user_id is None or account is None:
            return None
        if account.appservice_id is not None or self._registration.is_reserved(user_id):
            raise Refused(Reason.TAKEN, f"{user_id} is an application service's")
        self.check_usable(account)
        row = self._link(info, identity, user_id)

        def write(txn: WriteTransaction) -> bool:
            added = self._links.add_link(txn, row)
            if added:
                note(txn, user_id, Happened.LINKED, row.linked_ts, detail=info.provider_id)
            return added

        if not await self._database.write("link_account", write):
            raise Refused(
                Reason.TAKEN,
                f"{user_id} is linked to somebody else of {info.provider_id}",
                user_id=user_id,
            )
        self.log.info(
            "{user_id} is linked to {provider}", user_id=user_id, provider=info.provider_id
        )
        return account

    async def get_era(self, info: ProviderInfo, identity: UpstreamIdentity) -> int | None:
        """That of the account that `find` would find, which nothing is done with yet; None where
        they have none."""
        link = await self._links.get_link(info.provider_id, identity.subject)
        user_id = self._same_name(info, identity) if link is None else link.user_id
        account = (
            None if user_id is None else (await self._accounts.get_accounts([user_id])).get(user_id)
        )
        return None if account is None else account.era

    def _same_name(self, info: ProviderInfo, identity: UpstreamIdentity) -> UserID | None:
        """Whose account may become this person's, since it has their name."""
        if not info.allow_existing_users or identity.localpart is None:
            return None
        try:
            return parse_new_user_id(fit_localpart(identity.localpart), self._server_name)
        except MatrixError:
            return None

    async def get_refused(self, refused: Refused) -> UserID | None:
        """Whose account it is that somebody was refused; None where nobody has proved to be its
        owner."""
        if refused.user_id is not None or refused.person is None:
            return refused.user_id
        link = await self._links.get_link(*refused.person)
        return None if link is None else UserID(link.user_id)

    def check_usable(self, account: AccountRow) -> AccountRow:
        """Raises `Refused` for an account that nobody may use."""
        if account.deactivated_ts is not None:
            raise Refused(
                Reason.DEACTIVATED, f"{account.user_id} is deactivated", user_id=account.user_id
            )
        if account.locked:
            raise Refused(Reason.LOCKED, f"{account.user_id} is locked", user_id=account.user_id)
        if self._validity.is_over(account.expires_ts):
            raise Refused(
                Reason.EXPIRED, f"{account.user_id} is past its day", user_id=account.user_id
            )
        return account

    async def check_free(self, username: str) -> UserID:
        """The id that a name makes. Raises `InvalidUsername`, `Exclusive`, `UserInUse`."""
        return await self._registration.check_username(username)

    async def do_make(
        self, info: ProviderInfo, identity: UpstreamIdentity, username: str, languages: str = ""
    ) -> UserID:
        """Make an account. Raises `InvalidUsername`, `Exclusive`, `UserInUse`, and `Refused` where
        none may be made."""
        if not info.enable_registration:
            raise Refused(Reason.NO_ACCOUNT)

        def link(txn: WriteTransaction, user_id: UserID) -> None:
            # the next look notes the addresses too, and tries those again that others had
            row = msgspec.structs.replace(
                self._link(info, identity, user_id),
                said_name=compute_said(identity)[0],
                said_addresses="",
            )
            if not self._links.add_link(txn, row):
                raise Refused(Reason.OLD, f"{identity.subject} got another account in the meantime")
            note(txn, user_id, Happened.LINKED, row.linked_ts, detail=info.provider_id)

        wish = Wish(
            username=username,
            display_name=identity.display_name,
            emails=identity.emails,
            vouched_by=info.provider_id,
            languages=languages,
        )
        user_id = await self._registration.do_register_vouched(wish, link)
        self.log.info(
            "{user_id} was made for {provider}", user_id=user_id, provider=info.provider_id
        )
        if identity.picture is not None:
            await self._pictures.do_take_over(user_id, identity.picture)
        return user_id

    async def do_make_of(
        self, info: ProviderInfo, identity: UpstreamIdentity, languages: str = ""
    ) -> UserID | None:
        """Make an account of the name that the provider says; None where that cannot be one, or is
        taken. Raises `Refused`."""
        if identity.localpart is None or identity.confirm_localpart:
            return None
        try:
            return await self.do_make(info, identity, fit_localpart(identity.localpart), languages)
        except MatrixError:
            return None

    async def do_update(
        self, info: ProviderInfo, people: Mapping[UserID, UpstreamIdentity]
    ) -> Set[UserID]:
        """Take names and pictures over, of each by itself, and addresses, of all at once, so that
        people may swap theirs; whose addresses are, in part, another account's. Raises nothing: who
        is signed in stays so."""
        for user_id, identity in people.items():
            if identity.display_name is not None:
                try:
                    await self._profiles.do_set_display_name(user_id, identity.display_name)
                except MatrixError as error:
                    self.log.warn(
                        "the name of {user_id} was not taken over: {why}",
                        user_id=user_id,
                        why=error.text,
                    )
            if identity.picture is not None:
                await self._pictures.do_take_over(user_id, identity.picture)
        said = {user_id: identity.emails for user_id, identity in people.items()}
        return await self._addresses.do_set_vouched(said, info.provider_id)

    def _link(self, info: ProviderInfo, identity: UpstreamIdentity, user_id: str) -> ExternalIdRow:
        return ExternalIdRow(
            info.provider_id, identity.subject, user_id, int(self._clock.seconds() * 1000)
        )


class UpstreamProofs:
    """With what linked people confirm what they do: `in_browsers` and `by_password` are ids of
    providers."""

    def __init__(
        self,
        links: ExternalIdStore,
        in_browsers: Sequence[str],
        by_password: Sequence[str],
        *,
        by_plugins: bool,
    ) -> None:
        """`by_plugins`: plug-ins know passwords too."""
        self._by_plugins = by_plugins
        self._links = links
        self._in_browsers = frozenset(in_browsers)
        self._by_password = frozenset(by_password)

    async def stages_of(self, user_id: UserID) -> Sequence[str]:
        """As `OtherProofs.stages_of`."""
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


def as_error(refused: Refused) -> MatrixError:
    """What a client is told of a refusal."""
    if refused.reason is Reason.DEACTIVATED:
        return UserDeactivated()
    if refused.reason is Reason.LOCKED:
        return UserLocked(soft_logout=True)
    if refused.reason is Reason.EXPIRED:
        return ExpiredAccount()
    return Forbidden("You may not sign in here; ask the people who run this server")
