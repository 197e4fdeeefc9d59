"""What a directory says of its people, asked again and again: whom it has no more loses their
account here, within a minute, and whose name or address it has changed gets the new one.

Laws:
- Nobody is taken for gone by a failure: only a complete answer counts, and each who is missing in
  it is asked for again by name.
- When nobody is there, or more are missing than may leave at once, the directory is taken to be at
  fault: nothing is done but to say so, until people look.
- What an administrator has locked, no directory unlocks.
- Names and addresses are taken over when the directory says others than before, so many people at a
  time, and each of the two by itself; while it says the same, nothing is written, and what people
  call themselves stays. Where it is not known what it said before, that is noted, and nothing is
  changed.
- Nobody is left without an address because another still has theirs: it is tried again at each
  look, together with what the directory says of others, so that people who swap their addresses,
  two or a ring of them, all get theirs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.protocol.errors import LimitExceeded
from federation.protocol.ids import UserID
from homeserver.config.ldap import LDAPProvider
from homeserver.services.accounts.accounts import Accounts
from homeserver.services.accounts.deactivation import Deactivation
from homeserver.services.login.passwords import Threads
from homeserver.services.upstream.accounts import UpstreamAccounts
from homeserver.services.upstream.identity import ProviderInfo, UpstreamIdentity, compute_said
from homeserver.services.upstream.ldap.types import AskedDirectory, DirectoryFailed, Said
from storage.accounts.accounts import AccountStore
from storage.engine.transaction import WriteTransaction
from storage.upstream.external_ids import ExternalIdRow, ExternalIdStore

MOST_CHANGED: Final = 200
"""People whose name or address is taken over at one look, beside those who could not have theirs at
the last."""
MOST_REFUSED: Final = 10_000
"""So many of these are looked at together: two who swap their addresses, or a ring of so many."""


class DirectoryLeavers:
    """Looks for them in one directory."""

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        threads: Threads,
        links: ExternalIdStore,
        account_store: AccountStore,
        accounts: Accounts,
        deactivation: Deactivation,
        upstream_accounts: UpstreamAccounts,
        info: ProviderInfo,
        directory: AskedDirectory,
        config: LDAPProvider,
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
        self._complaint = ""
        self._refused: frozenset[str] = frozenset()
        """Whose addresses others had at the last look: they are tried again, together with those of
        now."""

    async def do_check(self, limit: int) -> int:
        """Look once, whatever the limit; 0, since nothing is left to be done at once."""
        del limit
        updates = self._config.update_profile_information
        if self._config.mode != "search" or (self._config.leavers == "keep" and not updates):
            return 0
        links = await self._links.get_links_of_provider(self._config.idp_id)
        if not links:
            return 0
        known: dict[str, Said] = {}
        if updates:
            present = [link for link in links if link.left_ts is None]
            known = {link.subject: (link.said_name, link.said_addresses) for link in present}
        try:
            listing = await self._threads.run(
                lambda: self._directory.list_people(known, MOST_CHANGED, self._refused)
            )
            if self._config.leavers != "keep":
                await self._do_look(links, listing.present)
            await self._do_update(listing.changed, {link.subject: link for link in links})
        except (DirectoryFailed, LimitExceeded) as error:
            self._complain(f"cannot be asked who is there: {error}")
        return 0

    async def _do_look(self, links: Sequence[ExternalIdRow], present: set[str]) -> None:
        """Who has left, and who is there again. Raises `DirectoryFailed`, `LimitExceeded`."""
        gone = [link for link in links if link.subject not in present and link.left_ts is None]
        if self._is_credible(len(present), len(gone), sum(link.left_ts is None for link in links)):
            if gone:
                subjects = [link.subject for link in gone]
                still_there = await self._threads.run(
                    lambda: self._directory.find_subjects(subjects)
                )
                await self._do_end([link for link in gone if link.subject not in still_there])
            await self._do_take_back(
                [link for link in links if link.left_ts and link.subject in present]
            )

    def _is_credible(self, present: int, gone: int, known: int) -> bool:
        allowed = max(1, int(known * self._config.leavers_at_most))
        if present == 0:
            self._complain("says that nobody is there; nobody is taken for gone")
        elif gone > allowed:
            self._complain(
                f"says that {gone} of {known} people are gone, and leavers_at_most lets {allowed}; nobody is taken for gone"
            )
        else:
            self._complaint = ""
            return True
        return False

    async def _do_update(
        self, changed: Sequence[UpstreamIdentity], links: Mapping[str, ExternalIdRow]
    ) -> None:
        news = {}
        for identity in changed:
            link = links[identity.subject]
            name, addresses = compute_said(identity)
            has_new_name = link.said_name not in (None, name)
            has_new_addresses = link.said_addresses not in (None, addresses)
            news[UserID(link.user_id)] = msgspec.structs.replace(
                identity,
                display_name=identity.display_name if has_new_name else None,
                emails=identity.emails if has_new_addresses else (),
            )
        refused = await self._upstream_accounts.do_update(self._info, news)
        for identity in changed:
            link = links[identity.subject]
            name, addresses = compute_said(identity)
            said = name, "" if link.user_id in refused else addresses
            if (link.said_name, link.said_addresses) != said:
                await self._links.set_said(self._info.provider_id, identity.subject, *said)
        self._refused = frozenset(
            [each.subject for each in changed if links[each.subject].user_id in refused][
                :MOST_REFUSED
            ]
        )

    async def _do_end(self, gone: list[ExternalIdRow]) -> None:
        for link in gone:
            user_id = UserID(link.user_id)
            if self._config.leavers == "deactivate":
                await self._deactivation.do_deactivate(user_id, erase=False)
            elif not (await self._account_store.get_accounts([user_id]))[user_id].locked:
                await self._accounts.do_set_flags(
                    user_id, locked=True, also=self._left(link, self._now())
                )
            self.log.warn(
                "{user_id} is no more in the directory {id}: {done}",
                user_id=user_id,
                id=self._config.idp_id,
                done=self._config.leavers,
            )

    async def _do_take_back(self, back: list[ExternalIdRow]) -> None:
        for link in back:
            await self._accounts.do_set_flags(
                UserID(link.user_id), locked=False, also=self._left(link, None)
            )
            self.log.info("{user_id} is in the directory again", user_id=link.user_id)

    def _left(self, link: ExternalIdRow, left_ts: int | None) -> Callable[[WriteTransaction], None]:
        def write(txn: WriteTransaction) -> None:
            self._links.set_left(txn, self._config.idp_id, link.subject, left_ts)

        return write

    def _now(self) -> int:
        return int(self._clock.seconds() * 1000)

    def _complain(self, text: str) -> None:
        """Once, and not at every look."""
        if text != self._complaint:
            self._complaint = text
            self.log.error("the directory {id} {text}", id=self._config.idp_id, text=text)
