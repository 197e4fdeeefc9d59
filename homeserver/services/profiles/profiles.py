"""Profiles: a display name, an avatar, and further fields that anyone may read.

Laws:
- A whole profile, as JSON, has at most 64 KiB.
- Rooms show display name and avatar: a change of these is noted in the same write, and then carried
  into the rooms.
- An unknown user and one without the field look alike.
- What a shadow-banned account makes of its profile, it sees itself, and nobody else does: neither
  here nor in rooms that it joins.

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
SHOWN_IN_ROOMS: Final = frozenset({DISPLAY_NAME, AVATAR_URL})
LARGEST_PROFILE: Final = 64 * 1024
"""In bytes, of the profile as a JSON object."""

_LONGEST_FIELD: Final = 255
_LONGEST: Final = {DISPLAY_NAME: 256, AVATAR_URL: 1000, "m.tz": 255}
"""In characters, of the fields that are strings."""


class ProfilePropagation(Protocol):
    """Carries changed names and avatars into rooms."""

    def wake(self, user_id: UserID) -> None:
        """There is a new note about this user in `profile_propagations`."""
        ...


class RemoteProfiles(Protocol):
    """Profiles of other servers' users."""

    async def get_profile(self, user_id: UserID, field: str | None) -> Mapping[str, object]:
        """The whole profile, or the one field. Raises `NotFound`, `Forbidden`,
        `OtherServerFailed`."""
        ...


class NameNotAllowed(Forbidden):
    default_text = "This display name is not allowed here"


class NameRules:
    """What people may call themselves."""

    def __init__(
        self, *, longest: int = 256, pattern: str | None = None, forbidden: Sequence[str] = ()
    ) -> None:
        """`pattern`: a regular expression that the whole name must match; `forbidden`: such as no
        part may match, in any case of letters."""
        self.are_any = longest < _LONGEST[DISPLAY_NAME] or pattern is not None or bool(forbidden)
        """Whether there is anything to keep to."""
        self._longest = longest
        self._pattern = None if pattern is None else re.compile(pattern)
        self._forbidden = [re.compile(each, re.IGNORECASE) for each in forbidden]

    def check(self, name: str) -> None:
        """Raises `NameNotAllowed`."""
        plain = unicodedata.normalize("NFKC", name)
        if len(name) > self._longest:
            raise NameNotAllowed(f"A display name has at most {self._longest} characters here")
        if self._pattern is not None and not self._pattern.fullmatch(name):
            raise NameNotAllowed
        if any(each.search(form) for each in self._forbidden for form in (name, plain)):
            raise NameNotAllowed


class Profiles:
    """Reads and changes profiles. `fixed`: fields that people may not change themselves."""

    def __init__(
        self,
        database: Database,
        accounts: AccountStore,
        profiles: ProfileStore,
        propagation: ProfilePropagation,
        remote: RemoteProfiles,
        *,
        server_name: ServerName,
        fixed: frozenset[str] = frozenset(),
        name_rules: NameRules | None = None,
    ) -> None:
        self._name_rules = name_rules or NameRules()
        self._database = database
        self._accounts = accounts
        self._profiles = profiles
        self._propagation = propagation
        self._remote = remote
        self._server_name = server_name
        self.fixed = fixed

    async def get_profile(
        self, user_id: UserID, asker: UserID | None = None
    ) -> Mapping[str, object]:
        """All fields of anyone, as the asker sees them. Raises `NotFound`."""
        if domain_of(user_id) != self._server_name:
            return await self._remote.get_profile(user_id, None)
        fields = await self._get(user_id, asker)
        if not fields:
            account = (await self._accounts.get_accounts([user_id])).get(user_id)
            if account is None or account.deactivated_ts is not None:
                raise NotFound("There is no such user here")
            return {}
        return {name: msgspec.Raw(value) for name, value in fields.items()}

    async def get_field(
        self, user_id: UserID, field: str, asker: UserID | None = None
    ) -> Mapping[str, object]:
        """One field of anyone, under its name, as the asker sees it. Raises `NotFound`."""
        if domain_of(user_id) != self._server_name:
            return await self._remote.get_profile(user_id, field)
        value = (await self._get(user_id, asker)).get(field)
        if value is None:
            raise NotFound("The profile has no such field")
        return {field: msgspec.Raw(value)}

    async def _get(self, user_id: UserID, asker: UserID | None) -> Mapping[str, bytes]:
        if asker == user_id:
            return await self._profiles.get_as_owner(user_id)
        return (await self._profiles.get_profiles([user_id])).get(user_id, {})

    async def get_own_name(self, user_id: UserID) -> str | None:
        """The display name, as its owner sees it."""
        return names_of(await self._profiles.get_as_owner(user_id))[0]

    async def get_for_others(self, user_id: UserID, field: str | None) -> Mapping[str, object]:
        """The profile of one of this server's users, or one field, for another server. Raises
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
        """Display name and avatar of each of these local users, in one query, for their
        memberships."""
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
            await self._remove(user_id, field, propagate, unshown=caller.is_shadow_banned)
        else:
            if field == DISPLAY_NAME and not caller.is_admin and caller.appservice_id is None:
                _check_value(field, value)
                self._name_rules.check(msgspec.json.decode(value, type=str))
            await self._set(user_id, field, value, propagate, unshown=caller.is_shadow_banned)

    async def do_choose_display_name(self, user_id: UserID, name: str) -> None:
        """Somebody calls themselves so. Raises `NameNotAllowed`, `Forbidden`, `InvalidParam`."""
        if DISPLAY_NAME in self.fixed:
            raise Forbidden("Display names cannot be changed here")
        self._name_rules.check(name)
        await self.do_set_display_name(user_id, name)

    def forget_unshown(self, txn: WriteTransaction, user_id: UserID) -> None:
        """In a write: somebody is shadow-banned no longer, and has the profile that all others
        see."""
        self._profiles.remove_unshown(txn, user_id)

    async def check_name_in_room(self, caller: Requester, name: object) -> None:
        """Raises `NameNotAllowed` for a name that somebody gives themselves in one room, which they
        may not have; that of their profile they have already."""
        if (
            caller.is_admin
            or caller.appservice_id is not None
            or not self._name_rules.are_any
            or not isinstance(name, str)
        ):
            return
        (known, _) = (await self.get_names([caller.user_id]))[caller.user_id]
        if name != known:
            self._name_rules.check(name)

    async def do_set_display_name(self, user_id: UserID, name: str) -> None:
        """Give somebody the name that they have elsewhere, whatever people may change themselves.
        Raises `InvalidParam`."""
        unshown = await self._is_shadow_banned(user_id)
        await self._set(user_id, DISPLAY_NAME, msgspec.json.encode(name), True, unshown=unshown)

    async def do_set_avatar(self, user_id: UserID, address: str) -> None:
        """Give somebody the picture that they have elsewhere, an `mxc://` address, whatever people
        may change themselves. Raises `InvalidParam`."""
        unshown = await self._is_shadow_banned(user_id)
        await self._set(user_id, AVATAR_URL, msgspec.json.encode(address), True, unshown=unshown)

    async def _is_shadow_banned(self, user_id: UserID) -> bool:
        account = (await self._accounts.get_accounts([user_id])).get(user_id)
        return account is not None and account.shadow_banned

    def check_shown(self, field: str, value: str) -> None:
        """Raises `InvalidParam` for a text that cannot be a name or a picture."""
        _check_value(field, msgspec.json.encode(value))

    async def do_set_shown(self, user_id: UserID, field: str, value: str) -> None:
        """An administrator gives somebody a name or a picture, or with an empty text none: all see
        it. Raises `InvalidParam`."""
        if value:
            await self._set(user_id, field, msgspec.json.encode(value), True)
        else:
            await self._remove(user_id, field, True)

    async def _set(
        self, user_id: UserID, field: str, value: bytes, propagate: bool, *, unshown: bool = False
    ) -> None:
        """`unshown`: nobody else sees it."""
        _check_value(field, value)
        propagate = propagate and field in SHOWN_IN_ROOMS and not unshown

        def write(txn: WriteTransaction) -> bool:
            if unshown:
                profile = self._profiles.get_as_owner_in(txn, user_id)
            else:
                profile = self._profiles.get_profiles_in(txn, [user_id]).get(user_id, {})
            if profile.get(field) == value:
                return False
            profile[field] = value
            # {"name":value, …}: four characters for each field, and those around the whole.
            if (
                sum(len(name) + len(each) + 4 for name, each in profile.items()) + 1
                > LARGEST_PROFILE
            ):
                raise ProfileTooLarge
            if unshown:
                self._profiles.set_unshown(txn, user_id, field, value)
                return True
            self._profiles.set_field(txn, user_id, field, value, propagate=propagate)
            return True

        if await self._database.write("set_profile_field", write) and propagate:
            self._propagation.wake(user_id)

    async def do_remove_field(
        self, caller: Requester, user_id: UserID, field: str, *, propagate: bool = True
    ) -> None:
        """Remove one field; that there is none is no error. Raises `Forbidden`, `InvalidParam`,
        `KeyTooLarge`."""
        self._check(caller, user_id, field)
        await self._remove(user_id, field, propagate, unshown=caller.is_shadow_banned)

    async def _remove(
        self, user_id: UserID, field: str, propagate: bool, *, unshown: bool = False
    ) -> None:
        if unshown:
            await self._database.write(
                "remove_unshown_field", self._profiles.set_unshown, user_id, field, None
            )
            return
        propagate = propagate and field in SHOWN_IN_ROOMS

        def write(txn: WriteTransaction) -> bool:
            return self._profiles.remove_field(txn, user_id, field, propagate=propagate) is not None

        if await self._database.write("remove_profile_field", write) and propagate:
            self._propagation.wake(user_id)

    def _check(self, caller: Requester, user_id: UserID, field: str) -> None:
        if len(field.encode()) > _LONGEST_FIELD:
            raise KeyTooLarge
        if not is_namespaced(field):
            raise InvalidParam(
                "The name of a profile field has the characters a-z 0-9 . _ - and begins with a letter"
            )
        if caller.user_id != user_id:
            raise Forbidden("You may change your own profile only")
        if caller.is_guest and field != DISPLAY_NAME:
            raise GuestAccessForbidden("Guests may change their display name only")
        if field in self.fixed and not caller.is_admin:
            raise Forbidden("This server does not let people change this field of their profile")


def _is_removal(field: str, value: bytes) -> bool:
    # COMPAT(Element Web): an avatar or name is taken away by setting it to nothing.
    return field in SHOWN_IN_ROOMS and value in (b'""', b"null")


def _check_value(field: str, value: bytes) -> None:
    decoded = decode_json(value, MAX_SENT_DEPTH)
    longest = _LONGEST.get(field)
    if longest is None:
        return
    if not isinstance(decoded, str):
        raise BadJson(f"{field} must be a string")
    if len(decoded) > longest:
        raise InvalidParam(f"{field} may have at most {longest} characters")
    if field == AVATAR_URL and not decoded.startswith("mxc://"):
        raise InvalidParam("avatar_url must be an mxc:// URI")


def names_of(fields: Mapping[str, bytes]) -> tuple[str | None, str | None]:
    """Display name and avatar among the stored fields of a profile."""
    return _text(fields.get(DISPLAY_NAME)), _text(fields.get(AVATAR_URL))


def _text(value: bytes | None) -> str | None:
    return None if value is None else msgspec.json.decode(value, type=str)
