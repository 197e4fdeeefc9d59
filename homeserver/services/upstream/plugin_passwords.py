"""Signs in users whose password a plug-in checks. Their accounts are found, linked and created in
the same way as accounts of users in an LDAP directory."""

from federation.protocol.errors import Forbidden
from federation.protocol.ids import UserID, localpart_of
from homeserver.services.login.password_login import ExternalAccountRefused
from homeserver.services.plugins.hooks import Person, Plugins
from homeserver.services.upstream.accounts import PLUGIN_PREFIX, UpstreamAccounts, refusal_to_error
from homeserver.services.upstream.identity import (
    ProviderInfo,
    SignInRefused,
    UpstreamIdentity,
    check_subject,
    clean_addresses,
    clean_name,
    map_to_localpart,
)
from storage.accounts.accounts import AccountRow


class PluginPasswords:
    """Checks passwords with plug-ins."""

    def __init__(self, *, plugins: Plugins, accounts: UpstreamAccounts) -> None:
        self._plugins = plugins
        self._accounts = accounts

    async def check(
        self, name: str, account: AccountRow | None, password: str, address: str
    ) -> UserID | None:
        """Implement `ExternalPasswords.check`."""
        del address  # plug-ins bound their own work
        typed = localpart_of(UserID(name)) if name.startswith("@") and ":" in name else name
        person = await self._plugins.check_password(typed, password) if password else None
        return None if person is None else await self._admit(person, account)

    async def _admit(self, person: Person, account: AccountRow | None) -> UserID:
        info = ProviderInfo(
            PLUGIN_PREFIX + person.source,
            person.source,
            allow_existing_users=person.may_take_account,
        )
        try:
            identity = UpstreamIdentity(
                subject=check_subject(person.subject),
                localpart=person.localpart,
                display_name=clean_name(person.display_name),
                emails=clean_addresses(person.emails),
            )
            found = await self._accounts.find(info, identity)
            if found is not None:
                return UserID(found.user_id)
            if account is not None:
                error = Forbidden("An account with this name exists, but is not linked")
                raise ExternalAccountRefused(UserID(account.user_id), error)
            return await self._accounts.do_create(
                info, identity, map_to_localpart(person.localpart)
            )
        except SignInRefused as refused:
            raise ExternalAccountRefused(refused.user_id, refusal_to_error(refused)) from None
