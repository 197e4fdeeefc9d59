"""The user directory: finds users by name or ID, and orders them.

A search finds users who share a room with the caller, users in public rooms and, if configured, all
local users. It never finds the caller, deactivated users or (unless configured) locked users.

Laws:
- A result does not reveal a name that a user has only in some of their private rooms. For a local
  user it shows the name from the profile. For a remote user in public rooms, it shows the name from
  their latest membership in such a room. For any other remote user, it shows a name only if the
  user has the same name in all their rooms on this server.
- A search makes a fixed number of queries and reads a bounded number of users.

spec: client-server-api#user-directory
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from federation.peers.identity import ServerIdentity
from federation.protocol.errors import InvalidParam
from homeserver.api.requester import Requester
from homeserver.services.text.search_terms import format_words
from homeserver.services.text.text_folding import TextFolding
from storage.cluster.job_progress import select_job_progress, set_job_progress
from storage.directory.user_directory import (
    DirectoryUser,
    FoundUser,
    RemoteProfile,
    UserDirectoryQuery,
    UserDirectoryStore,
)
from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction
from storage.profiles.profiles import ProfileStore

JOB_NAME: Final = "index_user_directory"
"""The name of the job and of its stored progress."""
BATCH: Final = 200
"""Users who are written together."""
DEFAULT_LIMIT: Final = 10
MAX_LIMIT: Final = 50
MAX_TERM: Final = 300
"""Characters of a search term."""
MAX_WORDS: Final = 8
"""Words of a search term."""
MAX_NAME: Final = 256
"""Characters of a remote user's name."""


class UserDirectory:
    """Searches users."""

    def __init__(
        self,
        *,
        store: UserDirectoryStore,
        folding: TextFolding,
        enabled: bool,
        search_all_users: bool,
        locals_first: bool,
        locals_only: bool,
        with_locked: bool,
    ) -> None:
        """`search_all_users`: local users find all local users."""
        self._store = store
        self._folding = folding
        self._enabled = enabled
        self._search_all_users = search_all_users
        self._locals_first = locals_first
        self._locals_only = locals_only
        self._with_locked = with_locked

    async def get_results(self, caller: Requester, term: str, limit: int | None) -> dict[str, Any]:
        """Return the best matches. Raises InvalidParam. spec:
        client-server-api#post_matrixclientv3user_directorysearch"""
        if len(term) > MAX_TERM:
            raise InvalidParam(f"search_term may have at most {MAX_TERM} characters")
        if not self._enabled:
            return {"results": [], "limited": False}
        text = term.strip()
        words = parse_words(self._folding, text)
        query = UserDirectoryQuery(
            caller.user_id,
            words,
            _id_prefix(text),
            self._locals_only,
            self._search_all_users,
            self._with_locked,
        )
        found = await self._store.get_users(query)
        found.sort(
            key=partial(
                self._order, text.casefold(), format_words(self._folding.lines(text)), words
            )
        )
        max_results = min(max(1, DEFAULT_LIMIT if limit is None else limit), MAX_LIMIT)
        return {
            "results": [_present(each.row) for each in found[:max_results]],
            "limited": len(found) > max_results,
        }

    def _order(
        self, text: str, keys: str, words: Sequence[Sequence[str]], found: FoundUser
    ) -> tuple[bool, bool, bool, bool, bool, str, str]:
        """Return the sort key. First come exact matches of name or ID, then users who share a room,
        then names with the complete words."""
        row = found.row
        user_id = row.user_id.casefold()
        localpart = user_id[1:].partition(":")[0]
        is_exact = text.removeprefix("@") in (user_id[1:], localpart) or bool(
            keys and keys == row.name_words
        )
        has_complete_words = all(
            any(f" {key} " in f"{row.name_words} {localpart} " for key in word) for word in words
        )
        return (
            self._locals_first and not row.is_local,
            not is_exact,
            not found.shares_room,
            not has_complete_words,
            row.display_name is None and row.avatar_url is None,
            row.name_words,
            row.user_id,
        )


class UserDirectoryUpdates:
    """Updates the directory: a job that processes queued changes. The write that applies a change
    also removes it from the queue."""

    def __init__(
        self,
        *,
        database: Database,
        store: UserDirectoryStore,
        profiles: ProfileStore,
        folding: TextFolding,
        identity: ServerIdentity,
    ) -> None:
        self._database = database
        self._store = store
        self._profiles = profiles
        self._folding = folding
        self._identity = identity
        self._seen = -1
        """The position of the stream at which the queue was empty."""

    async def do_step(self, limit: int) -> int:
        """Update up to `limit` users and return their number. Makes no query while nothing is
        written."""
        position = self._database.streams.current()
        if position == self._seen:
            return 0
        done = 0
        while done < limit:
            folding, changes, users = await self._database.read(
                "get_user_directory_changes", self._read, min(BATCH, limit - done)
            )
            if folding != self._folding.name:
                await self._database.write("begin_user_directory", self._begin)
                continue
            if not changes:
                self._seen = position
                break
            await self._database.write("put_directory_users", self._store.put_users, changes, users)
            done += len(changes)
        return done

    def _read(
        self, txn: Transaction, limit: int
    ) -> tuple[str | None, dict[str, int], list[tuple[DirectoryUser, list[str]]]]:
        changes = self._store.select_changes(txn, limit)
        local = [user_id for user_id in changes if self._identity.is_local(user_id)]
        own = self._store.select_local(txn, local)
        profiles = self._profiles.get_profiles_in(txn, own)
        users = [
            self._make(user_id, *_names_of(profiles.get(user_id, {})), is_local=True)
            for user_id in sorted(own)
        ]
        remote = self._store.select_remote_names(txn, changes.keys() - set(local))
        users += [
            self._make(user_id, *choose_names(names), is_local=False)
            for user_id, names in remote.items()
        ]
        return select_job_progress(txn, JOB_NAME), changes, users

    def _make(
        self, user_id: str, display_name: str | None, avatar_url: str | None, *, is_local: bool
    ) -> tuple[DirectoryUser, list[str]]:
        lines = self._folding.lines(display_name) if display_name else []
        row = DirectoryUser(user_id, is_local, display_name, avatar_url, format_words(lines))
        keys = [key for line in lines for key in line]
        localpart = user_id[1:].partition(":")[0]
        return row, list(dict.fromkeys((*keys, *self._folding.keys(localpart), user_id.casefold())))

    def _begin(self, txn: WriteTransaction) -> None:
        """Queue all users: the folding of keys has changed."""
        self._store.queue_all_users(txn)
        set_job_progress(txn, JOB_NAME, self._folding.name)


def parse_words(folding: TextFolding, text: str) -> list[tuple[str, ...]]:
    """Split a search term into words, each with its spellings: prefixes of keys."""
    lines = folding.lines(text)
    if not lines:
        return []
    if any(len(line) != len(lines[0]) for line in lines):
        lines = lines[:1]
    words = [tuple(dict.fromkeys(alternatives)) for alternatives in zip(*lines, strict=True)]
    return list(dict.fromkeys(words))[:MAX_WORDS]


def choose_names(rooms: Iterable[RemoteProfile]) -> tuple[str | None, str | None]:
    """Choose the name and the avatar of a remote user that reveal nothing about private rooms."""
    known = sorted(rooms, key=lambda each: each.position)
    public = [each for each in known if each.is_public]
    names = {each.display_name for each in public[-1:] or known}
    avatars = {each.avatar_url for each in public[-1:] or known}
    name = names.pop() if len(names) == 1 else None
    return None if name is None else name[:MAX_NAME], avatars.pop() if len(avatars) == 1 else None


def _names_of(fields: Mapping[str, bytes]) -> tuple[str | None, str | None]:
    values = [
        json.loads(fields[name]) if name in fields else None
        for name in ("displayname", "avatar_url")
    ]
    display_name, avatar_url = (
        value if isinstance(value, str) and value else None for value in values
    )
    return display_name, avatar_url


def _id_prefix(text: str) -> str | None:
    """Return the prefix of a user ID if the text may be one: `@ali`, `ali:example.org`."""
    if not text.startswith("@") and ":" not in text:
        return None
    prefix = text.casefold()
    return prefix if prefix.startswith("@") else f"@{prefix}"


def _present(row: DirectoryUser) -> dict[str, str]:
    form = {"user_id": row.user_id, "display_name": row.display_name, "avatar_url": row.avatar_url}
    return {name: value for name, value in form.items() if value is not None}
