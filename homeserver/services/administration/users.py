"""Administration of accounts: list, create and change.

Laws:
- A request is checked completely before any of it is carried out.
- The audit log records each change of an account, except its profile, and the administrator who
  made the change.
- A deactivated account stays deactivated and cannot be changed. A request that matches its current
  state succeeds, for tools that send back what they have read.
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
from homeserver.services.accounts.registration import Registration, RegistrationRequest
from homeserver.services.accounts.threepids import MAX_ADDRESSES, Threepids
from homeserver.services.directory.shadow_ban import HiddenRoomChanges
from homeserver.services.login.approvals import Approvals
from homeserver.services.login.last_seen import LastSeen
from homeserver.services.login.passwords import MAX_PASSWORD_LENGTH
from homeserver.services.profiles.profiles import AVATAR_URL, DISPLAY_NAME, Profiles
from homeserver.services.threepids.email_validation import parse_email_address
from homeserver.services.threepids.phone_validation import parse_phone_number, to_msisdn
from homeserver.services.threepids.validation import EMAIL, MSISDN
from homeserver.services.upstream.external_ids import ExternalIds
from storage.accounts.accounts import AccountRow
from storage.accounts.policy_consents import ConsentRow, PolicyConsentStore
from storage.accounts.user_lists import UserFilter, UserListStore, UserOrder, UserPage
from storage.devices.devices import DeviceStore
from storage.engine.transaction import WriteTransaction
from storage.threepids.threepids import ThreepidRow
from storage.upstream.external_ids import ExternalIdRow

USER_TYPES: Final = ("bot", "support")
MAX_PAGE_SIZE: Final = 10_000
"""Maximum number of entries of a page."""


class AccountChanges(msgspec.Struct, frozen=True, kw_only=True):
    """The requested state of an account; UNSET leaves a field unchanged."""

    password: str | UnsetType = UNSET
    logout_devices: bool = True
    """Whether a new password ends all sessions."""
    display_name: str | UnsetType = UNSET
    """Empty: remove it."""
    avatar_url: str | UnsetType = UNSET
    addresses: Sequence[tuple[str, str]] | UnsetType = UNSET
    """All e-mail addresses and telephone numbers, as pairs of medium and address."""
    external_ids: Mapping[str, str] | UnsetType = UNSET
    """All subjects at identity providers, by provider."""
    is_admin: bool | UnsetType = UNSET
    deactivated: bool | UnsetType = UNSET
    locked: bool | UnsetType = UNSET
    user_type: str | UnsetType | None = UNSET
    approved: bool | UnsetType = UNSET


class AccountDetails(msgspec.Struct, frozen=True):
    """An account with its profile, addresses, links, consents and last sighting."""

    account: AccountRow
    display_name: str | None
    avatar_url: str | None
    addresses: Sequence[ThreepidRow]
    links: Sequence[ExternalIdRow]
    consents: Sequence[ConsentRow]
    last_seen_ts: int | None


class UserAdministration:
    """Lists, shows, creates and changes accounts."""

    # More than ten: it is a front of the account services, and adds little of its own.
    def __init__(
        self,
        *,
        identity: ServerIdentity,
        store: UserListStore,
        devices: DeviceStore,
        accounts: Accounts,
        registration: Registration,
        profiles: Profiles,
        threepids: Threepids,
        links: ExternalIds,
        approvals: Approvals,
        deactivation: Deactivation,
        last_seen: LastSeen,
        consents: PolicyConsentStore,
        hidden_changes: HiddenRoomChanges,
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
        self._hidden_changes = hidden_changes

    @property
    def needs_approval(self) -> bool:
        """Whether new accounts need approval."""
        return self._registration.rules.needs_approval

    async def get_page(
        self, wanted: UserFilter, order: UserOrder, *, backwards: bool, first: int, limit: int
    ) -> UserPage:
        """Return a page of the list of accounts. Raises `InvalidParam`."""
        if first < 0 or limit < 0:
            raise InvalidParam("from and limit may not be negative")
        await self._last_seen.flush()
        return await self._store.get_page(
            wanted, order, backwards=backwards, first=first, limit=min(limit, MAX_PAGE_SIZE)
        )

    async def get_details(self, user_id: UserID) -> AccountDetails:
        """Return the details of an account.

        Raises `InvalidParam` for a user of another server, `NotFound`.
        """
        self._check_local(user_id)
        account = await self._accounts.get_account(user_id)
        await self._last_seen.flush()
        name, avatar = (await self._profiles.get_names([user_id]))[user_id]
        devices = (await self._devices.get_devices([user_id])).get(user_id, [])
        return AccountDetails(
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

    async def do_put(self, user_id: UserID, changes: AccountChanges, by: UserID) -> bool:
        """Create or change an account; return True if it was created.

        Raises `InvalidParam`, `BadJson`, `Forbidden`, `WeakPassword`, `ThreepidInUse`,
        `ExternalIdInUse`, and for a new account `InvalidUsername` and `Exclusive`.
        """
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
            raise InvalidUsername("Names of new accounts must be in lower case")
        await self._check(user_id, account, changes, by)
        if account is not None and account.deactivated_ts is not None:
            return False
        if account is None:
            await self._registration.do_register_privileged(
                _registration_request(user_id, changes, by)
            )
        elif changes.password is not UNSET:
            await self._accounts.do_set_password(
                user_id, changes.password, log_out_all=changes.logout_devices, by=by
            )
        await self._change(user_id, changes, by)
        return account is None

    async def is_administrator(self, user_id: UserID) -> bool:
        """Return whether the user is an administrator. Raises what `get_details` raises."""
        self._check_local(user_id)
        return (await self._accounts.get_account(user_id)).is_admin

    async def do_change(self, user_id: UserID, changes: AccountChanges, by: UserID) -> None:
        """Change an existing account. Raises `NotFound`, and what `do_put` raises."""
        self._check_local(user_id)
        await self._accounts.get_account(user_id)
        await self.do_put(user_id, changes, by)

    async def do_deactivate(self, user_id: UserID, by: UserID, *, erase: bool) -> str:
        """Deactivate an account permanently; return what `Deactivation.do_deactivate` returns.

        Raises `InvalidParam` for the administrator's own account, and what `get_details` raises.
        """
        self._check_local(user_id)
        if user_id == by:
            raise InvalidParam(
                "Administrators deactivate their own account in an app or on the account page"
            )
        return await self._deactivation.do_deactivate(user_id, erase=erase, by=by)

    async def check_available(self, username: str) -> None:
        """Check that a user name is free.

        Raises `InvalidUsername`, `Exclusive`, `UserInUse`.
        """
        await self._registration.check_username(username, privileged=True)

    async def do_shadow_ban(self, user_id: UserID, by: UserID, *, banned: bool) -> None:
        """Shadow-ban a user: what they send reaches nobody else. Or lift the ban.

        Lifting it discards the profile and room changes made during the ban. Raises `InvalidParam`
        for the administrator's own account, and what `get_details` raises.
        """
        self._check_local(user_id)
        if user_id == by:
            raise InvalidParam("Administrators cannot shadow-ban themselves")

        def discard_hidden_changes(txn: WriteTransaction) -> None:
            if not banned:
                self._profiles.remove_hidden_changes(txn, user_id)
                self._hidden_changes.remove_user(txn, user_id)

        await self._accounts.do_set_flags(
            user_id, shadow_banned=banned, by=by, extra_write=discard_hidden_changes
        )

    async def _check(
        self, user_id: UserID, account: AccountRow | None, changes: AccountChanges, by: UserID
    ) -> None:
        if changes.deactivated is True and changes.locked is True:
            raise InvalidParam("An account cannot be both deactivated and locked")
        if (
            changes.deactivated is False
            and account is not None
            and account.deactivated_ts is not None
        ):
            raise InvalidParam("A deactivated account cannot be reactivated")
        if account is not None and account.deactivated_ts is not None:
            if not _matches(await self.get_details(user_id), changes):
                raise InvalidParam("The account is deactivated and cannot be changed")
            return
        if user_id == by and (
            changes.is_admin is False or changes.locked is True or changes.deactivated is True
        ):
            raise InvalidParam(
                "Administrators cannot remove their own rights, or lock or deactivate themselves"
            )
        if changes.user_type is not UNSET and changes.user_type not in (None, *USER_TYPES):
            raise InvalidParam(f"user_type must be null or one of {', '.join(USER_TYPES)}")
        if changes.password is not UNSET:
            if account is None and len(changes.password) > MAX_PASSWORD_LENGTH:
                raise InvalidParam(f"A password has at most {MAX_PASSWORD_LENGTH} characters")
            self._accounts.check_password_policy(changes.password)
        for field, value in (
            (DISPLAY_NAME, changes.display_name),
            (AVATAR_URL, changes.avatar_url),
        ):
            if value:
                self._profiles.check_value(field, value)
        await self._check_addresses(user_id, changes)
        if changes.external_ids is not UNSET:
            await self._links.check(user_id, changes.external_ids)

    async def _check_addresses(self, user_id: UserID, changes: AccountChanges) -> None:
        addresses = [] if changes.addresses is UNSET else changes.addresses
        if len(addresses) > MAX_ADDRESSES:
            raise Forbidden(f"An account has at most {MAX_ADDRESSES} addresses")
        for medium, address in _parse_addresses(addresses):
            if await self._threepids.get_owner(medium, address) not in (None, user_id):
                raise ThreepidInUse

    async def _change(self, user_id: UserID, changes: AccountChanges, by: UserID) -> None:
        for field, value in (
            (DISPLAY_NAME, changes.display_name),
            (AVATAR_URL, changes.avatar_url),
        ):
            if value is not UNSET:
                await self._profiles.do_set_by_admin(user_id, field, value)
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
        if changes.approved is not UNSET and self.needs_approval:
            if changes.approved:
                await self._approvals.do_approve(user_id, by=by)
            else:
                await self._approvals.do_revoke(user_id, by=by)
        if changes.deactivated is True:
            await self._deactivation.do_deactivate(user_id, erase=False, by=by)

    def _check_local(self, user_id: UserID) -> None:
        if not self._identity.is_local(user_id):
            raise InvalidParam("The user does not belong to this server")


def _matches(details: AccountDetails, changes: AccountChanges) -> bool:
    """Return whether an account is in the requested state already."""
    account = details.account
    addresses = (
        changes.addresses
        if changes.addresses is UNSET
        else sorted(_parse_addresses(changes.addresses))
    )
    links = changes.external_ids if changes.external_ids is UNSET else dict(changes.external_ids)
    fields = (
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
    return all(wanted in (UNSET, current) for wanted, current in fields)


def _registration_request(
    user_id: UserID, changes: AccountChanges, by: UserID
) -> RegistrationRequest:
    return RegistrationRequest(
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
    """Return the addresses in their stored form, without duplicates.

    Numbers are those of E.164, with or without the `+`. Raises `InvalidParam`.
    """
    parsed = []
    for medium, address in entries:
        match medium:
            case "email":
                parsed.append((EMAIL, parse_email_address(address)))
            case "msisdn":
                number = parse_phone_number("", f"+{address.strip().removeprefix('+')}")
                parsed.append((MSISDN, to_msisdn(number)))
            case _:
                raise InvalidParam("medium must be email or msisdn")
    return list(dict.fromkeys(parsed))


def parse_external_ids(entries: Sequence[tuple[str, str]]) -> Mapping[str, str]:
    """Return the subjects by provider. Raises `BadJson` if a provider occurs twice."""
    found = dict(entries)
    if len(found) != len(entries):
        raise BadJson("An account has at most one external id of each provider")
    return found
