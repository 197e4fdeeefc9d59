"""Checks passwords with LDAP directories. Users log in as with a local password.

Laws:
- If an account is linked to a directory, the password is checked against the entry with the linked
  subject. Another entry with the account's name is not accepted: the directory may later give the
  name to another person.
- Queries run in threads, and the queue for the threads is bounded. So a directory that does not
  answer does not block the server. The threads serve client IP addresses in turn, and one address
  gets only a share of the threads.
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec
from twisted.logger import Logger

from federation.protocol.errors import Forbidden, MatrixError
from federation.protocol.ids import UserID, localpart_of
from homeserver.config.ldap import LDAPProviderOptions
from homeserver.http.rate_limits import address_key
from homeserver.services.login.password_login import ExternalAccountRefused
from homeserver.services.login.passwords import Threads
from homeserver.services.upstream.accounts import UpstreamAccounts, refusal_to_error
from homeserver.services.upstream.identity import (
    MAX_NAME_LENGTH,
    ProviderInfo,
    SignInRefused,
    hash_profile,
    map_to_localpart,
)
from homeserver.services.upstream.ldap.types import (
    DirectoryClient,
    DirectoryError,
    DirectoryPasswordCheck,
)
from storage.accounts.accounts import AccountRow
from storage.upstream.external_ids import ExternalIdRow, ExternalIdStore


class DirectoryUnavailable(MatrixError):
    """503: no directory can check the password now."""

    errcode, status = "M_UNKNOWN", 503
    default_text = "The directory of this server does not answer; try again in some minutes"


class RemovedUserCheck(Protocol):
    """Checks for users who were removed from the directory."""

    async def do_check(self, limit: int) -> int:
        """Check now."""
        ...


class Directory(msgspec.Struct, frozen=True):
    """A directory with its provider, its configuration and its check for removed users."""

    info: ProviderInfo
    config: LDAPProviderOptions
    client: DirectoryClient
    removed_users: RemovedUserCheck


class DirectoryPasswords:
    """Checks passwords with all directories, in the order of the configuration."""

    log = Logger()

    def __init__(
        self,
        *,
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
        """Return the user with this name and password in some directory, creating the account if
        there is none; None if no directory accepts them. `account`: the local account of this name,
        if any; `address`: the client's. Raises `DirectoryUnavailable`, `LimitExceeded`,
        `ExternalAccountRefused`, `Forbidden`."""
        links = {} if account is None else await self._links_of(account.user_id)
        is_in_use = account is not None and account.deactivated_ts is None
        failed: DirectoryError | None = None
        for directory in self._directories:
            link = links.get(directory.info.provider_id)
            if account is not None and link is None and not directory.config.allow_existing_users:
                continue
            try:
                verdict = await self._ask(
                    directory, name, account, link, password, address_key(address)
                )
            except DirectoryError as error:
                self.log.warn(
                    "the directory {id} cannot be queried: {why}",
                    id=directory.info.provider_id,
                    why=error,
                )
                failed = error
                continue
            if verdict.entry is not None:
                return await self._admit(directory, verdict, link)
            if link is not None and link.removed_ts is None and not verdict.exists and is_in_use:
                await directory.removed_users.do_check(1)
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
        client: str,
    ) -> DirectoryPasswordCheck:
        backend = directory.client
        if link is not None and directory.config.mode == "search":
            subject = link.subject
            return await self._threads.run(
                lambda: backend.check_password_of(subject, password), client
            )
        localpart = _localpart(name)
        verdict = await self._threads.run(
            lambda: backend.check_password(localpart, password), client
        )
        if (
            link is not None
            and verdict.entry is not None
            and verdict.entry.identity.subject != link.subject
        ):
            return DirectoryPasswordCheck(None)
        return verdict

    async def _admit(
        self, directory: Directory, verdict: DirectoryPasswordCheck, link: ExternalIdRow | None
    ) -> UserID:
        assert verdict.entry is not None
        identity = verdict.entry.identity
        try:
            account = await self._accounts.find(directory.info, identity)
            if account is None:
                if identity.localpart is None:
                    raise Forbidden("The directory gives no name for your account")
                return await self._accounts.do_create(
                    directory.info, identity, map_to_localpart(identity.localpart)
                )
        except SignInRefused as refused:
            self.log.info(
                "a user of {id} is refused: {why}", id=directory.info.provider_id, why=refused
            )
            raise ExternalAccountRefused(refused.user_id, refusal_to_error(refused)) from None
        user_id = UserID(account.user_id)
        if directory.config.update_profile_information:
            refused_users = await self._accounts.do_update_profiles(
                directory.info, {user_id: identity}
            )
            name, addresses = hash_profile(identity)
            hashes = name, "" if user_id in refused_users else addresses
            if link is None or (link.synced_name_hash, link.synced_addresses_hash) != hashes:
                await self._links.set_synced_hashes(
                    directory.info.provider_id, identity.subject, *hashes
                )
        return user_id


def _localpart(name: str) -> str:
    """Return the local part of a name or user ID."""
    return (localpart_of(UserID(name)) if name.startswith("@") and ":" in name else name)[
        :MAX_NAME_LENGTH
    ]
