"""Checks an LDAP directory for removed and changed users, at intervals. The option
`removed_users` decides whether the accounts of removed users are deactivated, locked or kept.
Changed names and e-mail addresses are imported.

Laws:
- A query that fails removes no user. Only a complete listing counts, and each missing user is
  queried again by subject.
- If the listing is empty, or more users are missing than `removed_users_max_share` allows, the
  directory counts as faulty. The check then logs an error, and neither removes nor restores users.
- When a user returns to the directory, the account is unlocked only if the check had locked it. An
  account that an administrator had locked before stays locked.
- A check imports a user's name or e-mail addresses only if they changed in the directory since the
  server last recorded them. So a name that the user chose is not overwritten at each check. If no
  earlier value is recorded, the check only records the current one.
- A check handles at most `MAX_CHANGED` changed users, not counting retries.
- If an e-mail address still belongs to another account, its import is retried at the next check.
- A check imports the changed e-mail addresses of all users in one write. So two users can swap
  addresses, and more users can exchange them in a ring.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.protocol.errors import LimitExceeded
from federation.protocol.ids import UserID
from homeserver.config.ldap import LDAPProviderOptions
from homeserver.services.accounts.accounts import Accounts
from homeserver.services.accounts.deactivation import Deactivation
from homeserver.services.login.passwords import Threads
from homeserver.services.upstream.accounts import UpstreamAccounts
from homeserver.services.upstream.identity import ProviderInfo, UpstreamIdentity, hash_profile
from homeserver.services.upstream.ldap.types import DirectoryClient, DirectoryError, ProfileHashes
from storage.accounts.accounts import AccountStore
from storage.engine.transaction import WriteTransaction
from storage.upstream.external_ids import ExternalIdRow, ExternalIdStore

MAX_CHANGED: Final = 200
"""Maximum number of users imported in one check, not counting retries."""
MAX_RETRIED: Final = 10_000
"""Maximum number of retries in one check, and so the longest ring of swapped addresses."""


class RemovedUsers:
    """Checks one directory for removed and changed users."""

    log = Logger()

    def __init__(
        self,
        *,
        clock: IReactorTime,
        threads: Threads,
        links: ExternalIdStore,
        account_store: AccountStore,
        accounts: Accounts,
        deactivation: Deactivation,
        upstream_accounts: UpstreamAccounts,
        info: ProviderInfo,
        directory: DirectoryClient,
        config: LDAPProviderOptions,
    ) -> None:
        self._clock = clock
        self._threads = threads
        self._links = links
        self._account_store = account_store
        self._accounts = accounts
        self._deactivation = deactivation
        self._upstream_accounts = upstream_accounts
        self._info = info
        self._directory = directory
        self._config = config
        self._last_error = ""
        self._refused: frozenset[str] = frozenset()
        """Subjects whose addresses belonged to other accounts at the last check; retried next."""

    async def do_check(self, limit: int) -> int:
        """Check once, ignoring the limit; return 0, no work is left."""
        del limit
        updates = self._config.update_profile_information
        if self._config.mode != "search" or (self._config.removed_users == "keep" and not updates):
            return 0
        links = await self._links.get_links_of_provider(self._config.idp_id)
        if not links:
            return 0
        known: dict[str, ProfileHashes] = {}
        if updates:
            active = [link for link in links if link.removed_ts is None]
            known = {
                link.subject: (link.synced_name_hash, link.synced_addresses_hash) for link in active
            }
        try:
            listing = await self._threads.run(
                lambda: self._directory.list_persons(known, MAX_CHANGED, self._refused)
            )
            if self._config.removed_users != "keep":
                await self._do_apply(links, listing.present)
            await self._do_update(listing.changed, {link.subject: link for link in links})
        except (DirectoryError, LimitExceeded) as error:
            self._log_error(f"cannot list its users: {error}")
        return 0

    async def _do_apply(self, links: Sequence[ExternalIdRow], active: set[str]) -> None:
        """End access of removed users, and restore it for returned ones. Raises `DirectoryError`,
        `LimitExceeded`."""
        missing = [link for link in links if link.subject not in active and link.removed_ts is None]
        if self._is_plausible(
            len(active), len(missing), sum(link.removed_ts is None for link in links)
        ):
            if missing:
                subjects = [link.subject for link in missing]
                still_listed = await self._threads.run(
                    lambda: self._directory.find_subjects(subjects)
                )
                await self._do_end([link for link in missing if link.subject not in still_listed])
            await self._do_restore(
                [link for link in links if link.removed_ts and link.subject in active]
            )

    def _is_plausible(self, active: int, missing: int, known: int) -> bool:
        allowed = max(1, int(known * self._config.removed_users_max_share))
        if active == 0:
            self._log_error("lists no users; no account is removed")
        elif missing > allowed:
            self._log_error(
                f"lacks {missing} of {known} users, and removed_users_max_share allows {allowed}; "
                "no account is removed"
            )
        else:
            self._last_error = ""
            return True
        return False

    async def _do_update(
        self, changed: Sequence[UpstreamIdentity], links: Mapping[str, ExternalIdRow]
    ) -> None:
        updates = {}
        for identity in changed:
            link = links[identity.subject]
            name, addresses = hash_profile(identity)
            has_new_name = link.synced_name_hash not in (None, name)
            has_new_addresses = link.synced_addresses_hash not in (None, addresses)
            updates[UserID(link.user_id)] = msgspec.structs.replace(
                identity,
                display_name=identity.display_name if has_new_name else None,
                emails=identity.emails if has_new_addresses else (),
            )
        refused = await self._upstream_accounts.do_update_profiles(self._info, updates)
        for identity in changed:
            link = links[identity.subject]
            name, addresses = hash_profile(identity)
            hashes = name, "" if link.user_id in refused else addresses
            if (link.synced_name_hash, link.synced_addresses_hash) != hashes:
                await self._links.set_synced_hashes(
                    self._info.provider_id, identity.subject, *hashes
                )
        self._refused = frozenset(
            [each.subject for each in changed if links[each.subject].user_id in refused][
                :MAX_RETRIED
            ]
        )

    async def _do_end(self, missing: list[ExternalIdRow]) -> None:
        for link in missing:
            user_id = UserID(link.user_id)
            if self._config.removed_users == "deactivate":
                await self._deactivation.do_deactivate(user_id, erase=False)
            elif not (await self._account_store.get_accounts([user_id]))[user_id].locked:
                await self._accounts.do_set_flags(
                    user_id, locked=True, extra_write=self._left(link, self._now())
                )
            self.log.warn(
                "{user_id} is no longer in the directory {id}: {done}",
                user_id=user_id,
                id=self._config.idp_id,
                done=self._config.removed_users,
            )

    async def _do_restore(self, returned: list[ExternalIdRow]) -> None:
        for link in returned:
            await self._accounts.do_set_flags(
                UserID(link.user_id), locked=False, extra_write=self._left(link, None)
            )
            self.log.info("{user_id} is in the directory again", user_id=link.user_id)

    def _left(
        self, link: ExternalIdRow, removed_ts: int | None
    ) -> Callable[[WriteTransaction], None]:
        def write(txn: WriteTransaction) -> None:
            self._links.set_removed(txn, self._config.idp_id, link.subject, removed_ts)

        return write

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)

    def _log_error(self, text: str) -> None:
        """Log an error once, not at every check."""
        if text != self._last_error:
            self._last_error = text
            self.log.error("the directory {id} {text}", id=self._config.idp_id, text=text)
