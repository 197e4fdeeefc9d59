"""Accounts as administrators list, make and change them.

Laws:
- What is asked for is checked as a whole before anything of it is done.
- What an administrator does to an account is recorded with their name.
- An account that was closed stays closed, and takes no changes; tools that send back what it is are
  no error.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from federation.peers.identity import ServerIdentity
from federation.protocol.errors import (
    BadJson,
    Forbidden,
    InvalidParam,
    InvalidUsername,
    NotFound,
    ThreepidInUse,
)
from federation.protocol.ids import UserID, localpart_of
from homeserver.services.accounts.accounts import Accounts
from homeserver.services.accounts.deactivation import Deactivation
from homeserver.services.accounts.registration import Registration, Wish
from homeserver.services.accounts.threepids import MOST_ADDRESSES, Threepids
from homeserver.services.directory.shadow_ban import UnshownRooms
from homeserver.services.login.approvals import Approvals
from homeserver.services.login.last_seen import LastSeen
from homeserver.services.login.passwords import LONGEST_PASSWORD
from homeserver.services.profiles.profiles import AVATAR_URL, DISPLAY_NAME, Profiles
from homeserver.services.threepids.email_validation import parse_email_address
from homeserver.services.threepids.phone_validation import digits_of, parse_phone_number
from homeserver.services.threepids.validation import EMAIL, MSISDN
from homeserver.services.upstream.links import UpstreamLinks
from storage.accounts.accounts import AccountRow
from storage.accounts.policy_consents import ConsentRow, PolicyConsentStore
from storage.accounts.user_lists import UserFilter, UserListStore, UserOrder, UserPage
from storage.devices.devices import DeviceStore
from storage.engine.transaction import WriteTransaction
from storage.threepids.threepids import ThreepidRow
from storage.upstream.external_ids import ExternalIdRow

USER_TYPES: Final = ("bot", "support")
MOST: Final = 10_000
"""Entries of a page."""


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """What an account is to be; what is not set stays as it is."""

    password: str | UnsetType = UNSET
    logout_devices: bool = True
    """Whether a new password ends all sessions."""
    display_name: str | UnsetType = UNSET
    """Empty: none."""
    avatar_url: str | UnsetType = UNSET
    addresses: Sequence[tuple[str, str]] | UnsetType = UNSET
    """E-mail addresses and telephone numbers, all of them: each with its medium."""
    external_ids: Mapping[str, str] | UnsetType = UNSET
    """Who it is for identity providers, by provider, all of them."""
    is_admin: bool | UnsetType = UNSET
    deactivated: bool | UnsetType = UNSET
    locked: bool | UnsetType = UNSET
    user_type: str | UnsetType | None = UNSET
    approved: bool | UnsetType = UNSET


class Details(msgspec.Struct, frozen=True):
    """What there is to know of an account."""

    account: AccountRow
    display_name: str | None
    avatar_url: str | None
    addresses: Sequence[ThreepidRow]
    links: Sequence[ExternalIdRow]
    consents: Sequence[ConsentRow]
    last_seen_ts: int | None


class UserAdministration:
    """Lists, shows, makes and changes accounts."""

    def __init__(
        self,
        identity: ServerIdentity,
        store: UserListStore,
        devices: DeviceStore,
        accounts: Accounts,
        registration: Registration,
        profiles: Profiles,
        threepids: Threepids,
        links: UpstreamLinks,
        approvals: Approvals,
        deactivation: Deactivation,
        last_seen: LastSeen,
        consents: PolicyConsentStore,
        unshown: UnshownRooms,
    ) -> None:
        self._identity = identity
        self._store = store
        self._devices = devices
        self._accounts = accounts
        self._registration = registration
        self._profiles = profiles
        self._threepids = threepids
        self._links = links
        self._approvals = approvals
        self._deactivation = deactivation
        self._last_seen = last_seen
        self._consents = consents
        self._unshown = unshown

    @property
    def approves(self) -> bool:
        """Whether new accounts wait for approval."""
        return self._registration.rules.needs_approval

    async def get_page(
        self, wanted: UserFilter, order: UserOrder, *, backwards: bool, first: int, limit: int
    ) -> UserPage:
        """A page of the list. Raises `InvalidParam`."""
        if first < 0 or limit < 0:
            raise InvalidParam("from and limit may not be negative")
        await self._last_seen.flush()
        return await self._store.get_page(
            wanted, order, backwards=backwards, first=first, limit=min(limit, MOST)
        )

    async def get_details(self, user_id: UserID) -> Details:
        """Raises `InvalidParam` for a user of another server, `NotFound`."""
        self._check_local(user_id)
        account = await self._accounts.get_account(user_id)
        await self._last_seen.flush()
        name, avatar = (await self._profiles.get_names([user_id]))[user_id]
        devices = (await self._devices.get_devices([user_id])).get(user_id, [])
        return Details(
            account,
            name,
            avatar,
            await self._threepids.get_threepids(user_id),
            await self._links.get_links(user_id),
            (await self._consents.get_consents([user_id])).get(user_id, []),
            max(
                (each.last_seen_ts for each in devices if each.last_seen_ts is not None),
                default=None,
            ),
        )

    async def do_put(self, user_id: UserID, changes: Changes, by: UserID) -> bool:
        """Make an account, or change one; True where it was made. Raises `InvalidParam`, `BadJson`,
        `Forbidden`, `WeakPassword`, `ThreepidInUse`, `LinkTaken`, and for a new account
        `InvalidUsername` and `Exclusive`."""
        self._check_local(user_id)
        try:
            account = await self._accounts.get_account(user_id)
        except NotFound:
            account = None
        if (
            account is None
            and await self._registration.check_username(localpart_of(user_id), privileged=True)
            != user_id
        ):
            raise InvalidUsername("Names of new accounts are in small letters")
        await self._check(user_id, account, changes, by)
        if account is not None and account.deactivated_ts is not None:
            return False
        if account is None:
            await self._registration.do_register_privileged(_wish(user_id, changes, by))
        elif changes.password is not UNSET:
            await self._accounts.do_set_password(
                user_id, changes.password, log_out_all=changes.logout_devices, by=by
            )
        await self._change(user_id, changes, by)
        return account is None

    async def is_administrator(self, user_id: UserID) -> bool:
        """Raises as `get_details`."""
        self._check_local(user_id)
        return (await self._accounts.get_account(user_id)).is_admin

    async def do_change(self, user_id: UserID, changes: Changes, by: UserID) -> None:
        """Change an account that exists. Raises `NotFound`, and as `do_put`."""
        self._check_local(user_id)
        await self._accounts.get_account(user_id)
        await self.do_put(user_id, changes, by)

    async def do_close(self, user_id: UserID, by: UserID, *, erase: bool) -> str:
        """End an account for good; as `Deactivation.do_deactivate`. Raises `InvalidParam` for one's
        own, and as `get_details`."""
        self._check_local(user_id)
        if user_id == by:
            raise InvalidParam(
                "Administrators close their own account as everybody else: in an app, or on the account page"
            )
        return await self._deactivation.do_deactivate(user_id, erase=erase, by=by)

    async def check_free(self, username: str) -> None:
        """Whether an account of this name could be made. Raises `InvalidUsername`, `Exclusive`,
        `UserInUse`."""
        await self._registration.check_username(username, privileged=True)

    async def do_shadow_ban(self, user_id: UserID, by: UserID, *, banned: bool) -> None:
        """Let what somebody sends go nowhere, or go its way again; what they have made of their
        profile and of rooms in the meantime is forgotten then. Raises `InvalidParam` for one's own
        account, and as `get_details`."""
        self._check_local(user_id)
        if user_id == by:
            raise InvalidParam("Administrators do not ban themselves")

        def forget(txn: WriteTransaction) -> None:
            if not banned:
                self._profiles.forget_unshown(txn, user_id)
                self._unshown.forget(txn, user_id)

        await self._accounts.do_set_flags(user_id, shadow_banned=banned, by=by, also=forget)

    async def _check(
        self, user_id: UserID, account: AccountRow | None, changes: Changes, by: UserID
    ) -> None:
        if changes.deactivated is True and changes.locked is True:
            raise InvalidParam("An account is closed or locked, not both")
        if (
            changes.deactivated is False
            and account is not None
            and account.deactivated_ts is not None
        ):
            raise InvalidParam("An account that was closed stays closed; nobody else gets its name")
        if account is not None and account.deactivated_ts is not None:
            if not _is_already(await self.get_details(user_id), changes):
                raise InvalidParam("The account is closed: nothing of it is changed any more")
            return
        if user_id == by and (
            changes.is_admin is False or changes.locked is True or changes.deactivated is True
        ):
            raise InvalidParam(
                "Administrators do not take their own rights or their own account away"
            )
        if changes.user_type is not UNSET and changes.user_type not in (None, *USER_TYPES):
            raise InvalidParam(f"user_type is null, or one of {', '.join(USER_TYPES)}")
        if changes.password is not UNSET:
            if account is None and len(changes.password) > LONGEST_PASSWORD:
                raise InvalidParam(f"A password has at most {LONGEST_PASSWORD} characters")
            self._accounts.check_password_policy(changes.password)
        for field, value in (
            (DISPLAY_NAME, changes.display_name),
            (AVATAR_URL, changes.avatar_url),
        ):
            if value:
                self._profiles.check_shown(field, value)
        await self._check_addresses(user_id, changes)
        if changes.external_ids is not UNSET:
            await self._links.check(user_id, changes.external_ids)

    async def _check_addresses(self, user_id: UserID, changes: Changes) -> None:
        addresses = [] if changes.addresses is UNSET else changes.addresses
        if len(addresses) > MOST_ADDRESSES:
            raise Forbidden(f"An account has at most {MOST_ADDRESSES} addresses")
        for medium, address in _parse_addresses(addresses):
            if await self._threepids.get_owner(medium, address) not in (None, user_id):
                raise ThreepidInUse

    async def _change(self, user_id: UserID, changes: Changes, by: UserID) -> None:
        for field, value in (
            (DISPLAY_NAME, changes.display_name),
            (AVATAR_URL, changes.avatar_url),
        ):
            if value is not UNSET:
                await self._profiles.do_set_shown(user_id, field, value)
        if changes.addresses is not UNSET:
            await self._threepids.do_replace(user_id, _parse_addresses(changes.addresses), by=by)
        if changes.external_ids is not UNSET:
            await self._links.do_replace(user_id, changes.external_ids, by=by)
        if changes.is_admin is not UNSET or changes.locked is not UNSET:
            await self._accounts.do_set_flags(
                user_id,
                is_admin=None if changes.is_admin is UNSET else changes.is_admin,
                locked=None if changes.locked is UNSET else changes.locked,
                by=by,
            )
        if changes.user_type is not UNSET:
            await self._accounts.do_set_user_type(user_id, changes.user_type, by=by)
        if changes.approved is not UNSET and self.approves:
            if changes.approved:
                await self._approvals.do_approve(user_id, by=by)
            else:
                await self._approvals.do_withdraw(user_id, by=by)
        if changes.deactivated is True:
            await self._deactivation.do_deactivate(user_id, erase=False, by=by)

    def _check_local(self, user_id: UserID) -> None:
        if not self._identity.is_local(user_id):
            raise InvalidParam("The user is not one of this server")


def _is_already(details: Details, changes: Changes) -> bool:
    """Whether an account is what is asked for."""
    account = details.account
    addresses = (
        changes.addresses
        if changes.addresses is UNSET
        else sorted(_parse_addresses(changes.addresses))
    )
    links = changes.external_ids if changes.external_ids is UNSET else dict(changes.external_ids)
    asked = (
        (changes.password, UNSET),
        (changes.deactivated, account.deactivated_ts is not None),
        (changes.display_name, details.display_name or ""),
        (changes.avatar_url, details.avatar_url or ""),
        (addresses, sorted((row.medium, row.address) for row in details.addresses)),
        (links, {row.provider: row.subject for row in details.links}),
        (changes.is_admin, account.is_admin),
        (changes.locked, account.locked),
        (changes.user_type, account.user_type),
    )
    return all(wanted in (UNSET, present) for wanted, present in asked)


def _wish(user_id: UserID, changes: Changes, by: UserID) -> Wish:
    return Wish(
        username=localpart_of(user_id),
        password=None if changes.password is UNSET else changes.password,
        inhibit_login=True,
        by=by,
        is_admin=changes.is_admin is True,
        user_type=None if changes.user_type is UNSET else changes.user_type,
        display_name=None if changes.display_name is UNSET else changes.display_name or None,
        emails=()
        if changes.addresses is UNSET
        else tuple(
            address for medium, address in _parse_addresses(changes.addresses) if medium == EMAIL
        ),
    )


def _parse_addresses(entries: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
    """Each as it is kept. Numbers are those of E.164, with or without the `+`. Raises
    `InvalidParam`."""
    parsed = []
    for medium, address in entries:
        match medium:
            case "email":
                parsed.append((EMAIL, parse_email_address(address)))
            case "msisdn":
                number = parse_phone_number("", f"+{address.strip().removeprefix('+')}")
                parsed.append((MSISDN, digits_of(number)))
            case _:
                raise InvalidParam("medium is email or msisdn")
    return list(dict.fromkeys(parsed))


def links_of(entries: Sequence[tuple[str, str]]) -> Mapping[str, str]:
    """Links by provider. Raises `BadJson` where a provider comes twice."""
    found = dict(entries)
    if len(found) != len(entries):
        raise BadJson("An account has one external id of each provider")
    return found
