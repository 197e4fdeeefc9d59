"""Passwords that a directory checks: the same sign-in as with a password that is kept here.

Laws:
- A linked account is checked by its subject: whoever has the same name later is somebody else.
- So many questions wait for a thread, and no more: a directory that hangs does not take the server
  with it. Threads are had by turns among the addresses from which people sign in, and one holds up
  a part of them only.
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec
from twisted.logger import Logger

from federation.protocol.errors import Forbidden, MatrixError
from federation.protocol.ids import UserID, localpart_of
from homeserver.config.ldap import LDAPProvider
from homeserver.http.rate_limits import address_key
from homeserver.services.login.password_login import RefusedElsewhere
from homeserver.services.login.passwords import Threads
from homeserver.services.upstream.accounts import UpstreamAccounts, as_error
from homeserver.services.upstream.identity import (
    LONGEST_NAME,
    ProviderInfo,
    Refused,
    compute_said,
    fit_localpart,
)
from homeserver.services.upstream.ldap.types import AskedDirectory, DirectoryFailed, Verdict
from storage.accounts.accounts import AccountRow
from storage.upstream.external_ids import ExternalIdRow, ExternalIdStore


class DirectoryUnavailable(MatrixError):
    """503: nobody can say at this moment whether a password is right."""

    errcode, status = "M_UNKNOWN", 503
    default_text = "The directory of this server does not answer; try again in some minutes"


class Leavers(Protocol):
    """Looks for people who have left."""

    async def do_check(self, limit: int) -> int:
        """Look now."""
        ...


class Directory(msgspec.Struct, frozen=True):
    """A directory, and what becomes of its people here."""

    info: ProviderInfo
    config: LDAPProvider
    asked: AskedDirectory
    leavers: Leavers


class DirectoryPasswords:
    """All directories, in the order of the configuration."""

    log = Logger()

    def __init__(
        self,
        threads: Threads,
        directories: Sequence[Directory],
        links: ExternalIdStore,
        accounts: UpstreamAccounts,
    ) -> None:
        self._threads = threads
        self._directories = tuple(directories)
        self._links = links
        self._accounts = accounts

    async def check(
        self, name: str, account: AccountRow | None, password: str, address: str
    ) -> UserID | None:
        """Whose name and password these are, in some directory; their account is made where they
        had none. `account`: the one that the name means here, if any; `address`: whence it is
        asked. Raises `DirectoryUnavailable`, `LimitExceeded`, `RefusedElsewhere`, `Forbidden`."""
        links = {} if account is None else await self._links_of(account.user_id)
        is_in_use = account is not None and account.deactivated_ts is None
        failed: DirectoryFailed | None = None
        for directory in self._directories:
            link = links.get(directory.info.provider_id)
            if account is not None and link is None and not directory.config.allow_existing_users:
                continue
            try:
                verdict = await self._ask(
                    directory, name, account, link, password, address_key(address)
                )
            except DirectoryFailed as error:
                self.log.warn(
                    "the directory {id} cannot be asked: {why}",
                    id=directory.info.provider_id,
                    why=error,
                )
                failed = error
                continue
            if verdict.entry is not None:
                return await self._admit(directory, verdict, link)
            if link is not None and link.left_ts is None and not verdict.exists and is_in_use:
                await directory.leavers.do_check(1)
        if failed is not None:
            raise DirectoryUnavailable
        return None

    async def _links_of(self, user_id: str) -> dict[str, ExternalIdRow]:
        return {
            link.provider: link
            for link in (await self._links.get_links_of_users([user_id])).get(user_id, [])
        }

    async def _ask(
        self,
        directory: Directory,
        name: str,
        account: AccountRow | None,
        link: ExternalIdRow | None,
        password: str,
        asker: str,
    ) -> Verdict:
        asked = directory.asked
        if link is not None and directory.config.mode == "search":
            subject = link.subject
            return await self._threads.run(
                lambda: asked.check_password_of(subject, password), asker
            )
        wanted = _typed_name(name)
        verdict = await self._threads.run(lambda: asked.check_password(wanted, password), asker)
        if (
            link is not None
            and verdict.entry is not None
            and verdict.entry.identity.subject != link.subject
        ):
            return Verdict(None)
        return verdict

    async def _admit(
        self, directory: Directory, verdict: Verdict, link: ExternalIdRow | None
    ) -> UserID:
        assert verdict.entry is not None
        identity = verdict.entry.identity
        try:
            account = await self._accounts.find(directory.info, identity)
            if account is None:
                if identity.localpart is None:
                    raise Forbidden("The directory does not say your name")
                return await self._accounts.do_make(
                    directory.info, identity, fit_localpart(identity.localpart)
                )
        except Refused as refused:
            self.log.info(
                "somebody of {id} is refused: {why}", id=directory.info.provider_id, why=refused
            )
            raise RefusedElsewhere(refused.user_id, as_error(refused)) from None
        user_id = UserID(account.user_id)
        if directory.config.update_profile_information:
            elsewhere = await self._accounts.do_update(directory.info, {user_id: identity})
            name, addresses = compute_said(identity)
            said = name, "" if user_id in elsewhere else addresses
            if link is None or (link.said_name, link.said_addresses) != said:
                await self._links.set_said(directory.info.provider_id, identity.subject, *said)
        return user_id


def _typed_name(name: str) -> str:
    """The name without what makes a user id of it."""
    return (localpart_of(UserID(name)) if name.startswith("@") and ":" in name else name)[
        :LONGEST_NAME
    ]
