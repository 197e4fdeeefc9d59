"""Profiles: a display name, an avatar and further public fields.

Laws:
- A profile has at most 64 KiB as JSON.
- The user's membership events contain the display name and the avatar. The write that changes the
  name or the avatar also queues an update of these events, unless the client asks not to (MSC4069).
- The response to a request for a field of a local user does not reveal whether the user is unknown
  or only lacks the field.
- Profile changes by a shadow-banned user are visible only to that user. Membership events of the
  user contain the profile without these changes.

spec: client-server-api#profiles
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import msgspec

from federation.protocol.canonical_json import MAX_SENT_DEPTH, decode_json
from federation.protocol.errors import (
    BadJson,
    Forbidden,
    GuestAccessForbidden,
    InvalidParam,
    KeyTooLarge,
    MissingParam,
    NotFound,
    ProfileTooLarge,
)
from federation.protocol.ids import ServerName, UserID, domain_of, is_namespaced
from homeserver.api.requester import Requester
from storage.accounts.accounts import AccountStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.profiles.profiles import ProfileStore

DISPLAY_NAME: Final = "displayname"
AVATAR_URL: Final = "avatar_url"
MEMBERSHIP_FIELDS: Final = frozenset({DISPLAY_NAME, AVATAR_URL})
MAX_PROFILE_BYTES: Final = 64 * 1024
"""Bytes of the profile as a JSON object."""

_MAX_FIELD_NAME_BYTES: Final = 255
_MAX_CHARS: Final = {DISPLAY_NAME: 256, AVATAR_URL: 1000, "m.tz": 255}
"""Limits of the string fields in characters."""


class PropagationWorker(Protocol):
    """Sends changed names and avatars to rooms."""

    def wake(self, user_id: UserID) -> None:
        """Process the new row of this user in `profile_propagation_queue`."""
        ...


class RemoteProfiles(Protocol):
    """Reads profiles of remote users."""

    async def get_profile(self, user_id: UserID, field: str | None) -> Mapping[str, object]:
        """Return the complete profile, or one field. Raises `NotFound`, `Forbidden`,
        `OtherServerFailed`."""
        ...


class NameNotAllowed(Forbidden):
    """The server's rules do not allow a display name."""

    default_text = "This display name is not allowed on this server"


class NameRules:
    """The server's rules for display names."""

    def __init__(
        self, *, max_length: int = 256, pattern: str | None = None, forbidden: Sequence[str] = ()
    ) -> None:
        """`pattern`: a regular expression that the complete name has to match; `forbidden`: regular
        expressions that no part of it may match, ignoring case."""
        self.has_rules = (
            max_length < _MAX_CHARS[DISPLAY_NAME] or pattern is not None or bool(forbidden)
        )
        """Whether the operator configured any rule."""
        self._max_length = max_length
        self._pattern = None if pattern is None else re.compile(pattern)
        self._forbidden = [re.compile(each, re.IGNORECASE) for each in forbidden]

    def check(self, name: str) -> None:
        """Raise `NameNotAllowed` if a name breaks the rules."""
        plain = unicodedata.normalize("NFKC", name)
        if len(name) > self._max_length:
            raise NameNotAllowed(
                f"Display names on this server may have at most {self._max_length} characters"
            )
        if self._pattern is not None and not self._pattern.fullmatch(name):
            raise NameNotAllowed
        if any(each.search(form) for each in self._forbidden for form in (name, plain)):
            raise NameNotAllowed


class Profiles:
    """Reads and changes profiles. `fixed_fields`: fields that users cannot change themselves."""

    def __init__(
        self,
        *,
        database: Database,
        accounts: AccountStore,
        profiles: ProfileStore,
        propagation: PropagationWorker,
        remote: RemoteProfiles,
        server_name: ServerName,
        fixed_fields: frozenset[str] = frozenset(),
        name_rules: NameRules | None = None,
    ) -> None:
        self._name_rules = name_rules or NameRules()
        self._database = database
        self._accounts = accounts
        self._profiles = profiles
        self._propagation = propagation
        self._remote = remote
        self._server_name = server_name
        self.fixed_fields = fixed_fields

    async def get_profile(
        self, user_id: UserID, requester: UserID | None = None
    ) -> Mapping[str, object]:
        """Return all fields of a local or remote user, as `requester` sees them. Raises
        `NotFound`."""
        if domain_of(user_id) != self._server_name:
            return await self._remote.get_profile(user_id, None)
        fields = await self._get(user_id, requester)
        if not fields:
            account = (await self._accounts.get_accounts([user_id])).get(user_id)
            if account is None or account.deactivated_ts is not None:
                raise NotFound("There is no such user on this server")
            return {}
        return {name: msgspec.Raw(value) for name, value in fields.items()}

    async def get_field(
        self, user_id: UserID, field: str, requester: UserID | None = None
    ) -> Mapping[str, object]:
        """Return one field of a local or remote user, under its name, as `requester` sees it.
        Raises `NotFound`."""
        if domain_of(user_id) != self._server_name:
            return await self._remote.get_profile(user_id, field)
        value = (await self._get(user_id, requester)).get(field)
        if value is None:
            raise NotFound("The profile has no such field")
        return {field: msgspec.Raw(value)}

    async def _get(self, user_id: UserID, requester: UserID | None) -> Mapping[str, bytes]:
        if requester == user_id:
            return await self._profiles.get_as_owner(user_id)
        return (await self._profiles.get_profiles([user_id])).get(user_id, {})

    async def get_own_name(self, user_id: UserID) -> str | None:
        """Return the display name as its owner sees it."""
        return names_of(await self._profiles.get_as_owner(user_id))[0]

    async def get_for_server(self, user_id: UserID, field: str | None) -> Mapping[str, object]:
        """Return the profile of a local user, or one field, for another server. Raises
        `NotFound`."""
        if domain_of(user_id) != self._server_name:
            raise NotFound(f"{user_id} is not a user of this server")
        return (
            await self.get_profile(user_id)
            if field is None
            else await self.get_field(user_id, field)
        )

    async def get_names(
        self, user_ids: list[UserID]
    ) -> dict[UserID, tuple[str | None, str | None]]:
        """Return display names and avatars of local users for their membership events, with one
        query."""
        profiles = await self._profiles.get_profiles(user_ids)
        return {user_id: names_of(profiles.get(user_id, {})) for user_id in user_ids}

    async def do_set_field(
        self,
        caller: Requester,
        user_id: UserID,
        field: str,
        body: Mapping[str, msgspec.Raw],
        *,
        propagate: bool = True,
    ) -> None:
        """Set one field to `body[field]`. Raises `Forbidden`, `NameNotAllowed`, `InvalidParam`,
        `KeyTooLarge`, `MissingParam`, `BadJson`, `ProfileTooLarge`."""
        self._check(caller, user_id, field)
        if field not in body:
            raise MissingParam(f"The body has no {field}")
        value = bytes(body[field])
        if _is_removal(field, value):
            await self._remove(user_id, field, propagate, hidden=caller.is_shadow_banned)
        else:
            if field == DISPLAY_NAME and not caller.is_admin and caller.appservice_id is None:
                _check_value(field, value)
                self._name_rules.check(msgspec.json.decode(value, type=str))
            await self._set(user_id, field, value, propagate, hidden=caller.is_shadow_banned)

    async def do_choose_display_name(self, user_id: UserID, name: str) -> None:
        """Set a display name that the user chose. Raises `NameNotAllowed`, `Forbidden`,
        `InvalidParam`."""
        if DISPLAY_NAME in self.fixed_fields:
            raise Forbidden("This server does not let users change their display names")
        self._name_rules.check(name)
        await self.do_set_display_name(user_id, name)

    def remove_hidden_changes(self, txn: WriteTransaction, user_id: UserID) -> None:
        """Delete, in the caller's write, the hidden profile changes of a user whose shadow ban
        ends."""
        self._profiles.remove_shadow_fields(txn, user_id)

    async def check_name_in_room(self, caller: Requester, name: object) -> None:
        """Raise `NameNotAllowed` if a user may not use a name in one room. The name of their
        profile is always allowed."""
        if (
            caller.is_admin
            or caller.appservice_id is not None
            or not self._name_rules.has_rules
            or not isinstance(name, str)
        ):
            return
        (known, _) = (await self.get_names([caller.user_id]))[caller.user_id]
        if name != known:
            self._name_rules.check(name)

    async def do_set_display_name(self, user_id: UserID, name: str) -> None:
        """Set the display name from an external source, without the server's rules. Raises
        `InvalidParam`."""
        hidden = await self._is_shadow_banned(user_id)
        await self._set(user_id, DISPLAY_NAME, msgspec.json.encode(name), True, hidden=hidden)

    async def do_set_avatar(self, user_id: UserID, address: str) -> None:
        """Set the avatar (`mxc://`) from an external source, without the server's rules. Raises
        `InvalidParam`."""
        hidden = await self._is_shadow_banned(user_id)
        await self._set(user_id, AVATAR_URL, msgspec.json.encode(address), True, hidden=hidden)

    async def _is_shadow_banned(self, user_id: UserID) -> bool:
        account = (await self._accounts.get_accounts([user_id])).get(user_id)
        return account is not None and account.shadow_banned

    def check_value(self, field: str, value: str) -> None:
        """Raise `InvalidParam` if a value is not a valid display name or avatar."""
        _check_value(field, msgspec.json.encode(value))

    async def do_set_by_admin(self, user_id: UserID, field: str, value: str) -> None:
        """Set a display name or an avatar as an administrator; "" removes it. All users see the
        change. Raises `InvalidParam`."""
        if value:
            await self._set(user_id, field, msgspec.json.encode(value), True)
        else:
            await self._remove(user_id, field, True)

    async def _set(
        self, user_id: UserID, field: str, value: bytes, propagate: bool, *, hidden: bool = False
    ) -> None:
        """`hidden`: only the user sees the change."""
        _check_value(field, value)
        propagate = propagate and field in MEMBERSHIP_FIELDS and not hidden

        def write(txn: WriteTransaction) -> bool:
            if hidden:
                profile = self._profiles.get_as_owner_in(txn, user_id)
            else:
                profile = self._profiles.get_profiles_in(txn, [user_id]).get(user_id, {})
            if profile.get(field) == value:
                return False
            profile[field] = value
            # {"name":value, …}: four characters for each field, and the braces
            if (
                sum(len(name) + len(each) + 4 for name, each in profile.items()) + 1
                > MAX_PROFILE_BYTES
            ):
                raise ProfileTooLarge
            if hidden:
                self._profiles.set_shadow_field(txn, user_id, field, value)
                return True
            self._profiles.set_field(txn, user_id, field, value, propagate=propagate)
            return True

        if await self._database.write("set_profile_field", write) and propagate:
            self._propagation.wake(user_id)

    async def do_remove_field(
        self, caller: Requester, user_id: UserID, field: str, *, propagate: bool = True
    ) -> None:
        """Remove one field if there is one. Raises `Forbidden`, `InvalidParam`, `KeyTooLarge`."""
        self._check(caller, user_id, field)
        await self._remove(user_id, field, propagate, hidden=caller.is_shadow_banned)

    async def _remove(
        self, user_id: UserID, field: str, propagate: bool, *, hidden: bool = False
    ) -> None:
        if hidden:
            await self._database.write(
                "remove_shadow_banned_field", self._profiles.set_shadow_field, user_id, field, None
            )
            return
        propagate = propagate and field in MEMBERSHIP_FIELDS

        def write(txn: WriteTransaction) -> bool:
            return self._profiles.remove_field(txn, user_id, field, propagate=propagate) is not None

        if await self._database.write("remove_profile_field", write) and propagate:
            self._propagation.wake(user_id)

    def _check(self, caller: Requester, user_id: UserID, field: str) -> None:
        if len(field.encode()) > _MAX_FIELD_NAME_BYTES:
            raise KeyTooLarge
        if not is_namespaced(field):
            raise InvalidParam(
                "The name of a profile field may have the characters a-z 0-9 . _ - and has to "
                "begin with a letter"
            )
        if caller.user_id != user_id:
            raise Forbidden("You may change only your own profile")
        if caller.is_guest and field != DISPLAY_NAME:
            raise GuestAccessForbidden("Guests may change only their display name")
        if field in self.fixed_fields and not caller.is_admin:
            raise Forbidden("This server does not let users change this profile field")


def _is_removal(field: str, value: bytes) -> bool:
    # COMPAT(Element Web): it removes an avatar or name by setting it to an empty value.
    return field in MEMBERSHIP_FIELDS and value in (b'""', b"null")


def _check_value(field: str, value: bytes) -> None:
    decoded = decode_json(value, MAX_SENT_DEPTH)
    max_length = _MAX_CHARS.get(field)
    if max_length is None:
        return
    if not isinstance(decoded, str):
        raise BadJson(f"{field} must be a string")
    if len(decoded) > max_length:
        raise InvalidParam(f"{field} may have at most {max_length} characters")
    if field == AVATAR_URL and not decoded.startswith("mxc://"):
        raise InvalidParam("avatar_url must be an mxc:// URI")


def names_of(fields: Mapping[str, bytes]) -> tuple[str | None, str | None]:
    """Return display name and avatar from the stored fields of a profile."""
    return _text(fields.get(DISPLAY_NAME)), _text(fields.get(AVATAR_URL))


def _text(value: bytes | None) -> str | None:
    return None if value is None else msgspec.json.decode(value, type=str)
