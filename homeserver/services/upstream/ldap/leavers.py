"""People who have left: whom a directory has no more loses their account here, within a minute.

Laws:
- Nobody is taken for gone by a failure: only a complete answer counts, and each who is missing in it is asked for again by
  name.
- When nobody is there, or more are missing than may leave at once, the directory is taken to be at fault: nothing is done
  but to say so, until people look.
- What an administrator has locked, no directory unlocks.
"""

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.protocol.errors import LimitExceeded
from federation.protocol.ids import UserID
from homeserver.config.directories import LDAPProvider
from homeserver.services.accounts import Accounts
from homeserver.services.deactivation import Deactivation
from homeserver.services.passwords import Threads
from homeserver.services.upstream.ldap.answers import AskedDirectory, DirectoryFailed
from storage.accounts import AccountStore
from storage.database import Database
from storage.external_ids import ExternalIdRow, ExternalIdStore


class DirectoryLeavers:
    """Looks for them in one directory."""

    log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        threads: Threads,
        database: Database,
        links: ExternalIdStore,
        account_store: AccountStore,
        accounts: Accounts,
        deactivation: Deactivation,
        directory: AskedDirectory,
        config: LDAPProvider,
    ) -> None:
        self._clock = clock
        self._threads = threads
        self._database = database
        self._links = links
        self._account_store = account_store
        self._accounts = accounts
        self._deactivation = deactivation
        self._directory = directory
        self._config = config
        self._complaint = ""

    async def do_check(self, limit: int) -> int:
        """Look once, whatever the limit; 0, since nothing is left to be done at once."""
        del limit
        if self._config.leavers == "keep" or self._config.mode != "search":
            return 0
        links = await self._links.get_links_of_provider(self._config.idp_id)
        if not links:
            return 0
        try:
            present = await self._threads.run(self._directory.list_subjects)
            gone = [link for link in links if link.subject not in present and link.left_ts is None]
            if self._is_credible(len(present), len(gone), sum(link.left_ts is None for link in links)):
                if gone:
                    subjects = [link.subject for link in gone]
                    still_there = await self._threads.run(lambda: self._directory.find_subjects(subjects))
                    await self._do_end([link for link in gone if link.subject not in still_there])
                await self._do_take_back([link for link in links if link.left_ts and link.subject in present])
        except (DirectoryFailed, LimitExceeded) as error:
            self._complain(f"cannot be asked who is there: {error}")
        return 0

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

    async def _do_end(self, gone: list[ExternalIdRow]) -> None:
        for link in gone:
            user_id = UserID(link.user_id)
            if self._config.leavers == "deactivate":
                await self._deactivation.do_deactivate(user_id, erase=False)
            elif not (await self._account_store.get_accounts([user_id]))[user_id].locked:
                now = int(self._clock.seconds() * 1000)
                await self._accounts.do_set_flags(user_id, locked=True)
                await self._database.write("set_left", self._links.set_left, self._config.idp_id, link.subject, now)
            self.log.warn(
                "{user_id} is no more in the directory {id}: {done}",
                user_id=user_id,
                id=self._config.idp_id,
                done=self._config.leavers,
            )

    async def _do_take_back(self, back: list[ExternalIdRow]) -> None:
        for link in back:
            await self._accounts.do_set_flags(UserID(link.user_id), locked=False)
            await self._database.write("set_left", self._links.set_left, self._config.idp_id, link.subject, None)
            self.log.info("{user_id} is in the directory again", user_id=link.user_id)

    def _complain(self, text: str) -> None:
        """Once, and not at every look."""
        if text != self._complaint:
            self._complaint = text
            self.log.error("the directory {id} {text}", id=self._config.idp_id, text=text)
