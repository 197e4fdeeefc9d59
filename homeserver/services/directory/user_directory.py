"""The directory of people: who is found by a name or an id, and in which order.

Found are those who share a room with who asks, those in public rooms, and, if the configuration
says so, everyone with an account here. Never found is who asks, whose account has ended, and
(unless configured) whose account is locked.

Laws:
- A name in a room is told only where it is no secret: of our own people it is the one of their
  profile, never what a room shows; of others that of public rooms, or else the one that all of
  their rooms here agree on.
- A search makes a fixed number of queries, and looks at a bounded number of people.

spec: client-server-api#user-directory
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

from federation.peers.identity import ServerIdentity
from federation.protocol.errors import InvalidParam
from homeserver.api.requester import Requester
from homeserver.services.text.terms import format_words
from homeserver.services.text.words import Folding
from storage.cluster.job_progress import put_note, select_note
from storage.directory.user_directory import (
    DirectoryQuery,
    DirectoryRow,
    FoundUser,
    RemoteName,
    UserDirectoryStore,
)
from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction
from storage.profiles.profiles import ProfileStore

NAME: Final = "index_people"
"""Of the job, and of its note."""
AT_ONCE: Final = 200
"""People who are written at once."""
DEFAULT_LIMIT: Final = 10
MAX_LIMIT: Final = 50
MAX_TERM: Final = 300
"""Characters of a search term."""
MAX_WORDS: Final = 8
"""Of a search term."""
MAX_NAME: Final = 256
"""Characters of a name that another server gave somebody."""


class UserDirectory:
    """Finds people."""

    def __init__(
        self,
        store: UserDirectoryStore,
        folding: Folding,
        *,
        enabled: bool,
        everyone: bool,
        locals_first: bool,
        locals_only: bool,
        with_locked: bool,
    ) -> None:
        """`everyone`: people of this server are found by all of its people."""
        self._store = store
        self._folding = folding
        self._enabled = enabled
        self._everyone = everyone
        self._locals_first = locals_first
        self._locals_only = locals_only
        self._with_locked = with_locked

    async def get_results(self, caller: Requester, term: str, limit: int | None) -> dict[str, Any]:
        """The best matches. Raises InvalidParam. spec:
        client-server-api#post_matrixclientv3user_directorysearch"""
        if len(term) > MAX_TERM:
            raise InvalidParam(f"search_term may not be longer than {MAX_TERM} characters")
        if not self._enabled:
            return {"results": [], "limited": False}
        text = term.strip()
        words = parse_words(self._folding, text)
        query = DirectoryQuery(
            caller.user_id,
            words,
            _id_beginning(text),
            self._locals_only,
            self._everyone,
            self._with_locked,
        )
        found = await self._store.get_users(query)
        found.sort(
            key=partial(
                self._order, text.casefold(), format_words(self._folding.lines(text)), words
            )
        )
        most = min(max(1, DEFAULT_LIMIT if limit is None else limit), MAX_LIMIT)
        return {
            "results": [_present(each.row) for each in found[:most]],
            "limited": len(found) > most,
        }

    def _order(
        self, text: str, keys: str, words: Sequence[Sequence[str]], found: FoundUser
    ) -> tuple[bool, bool, bool, bool, bool, str, str]:
        """The best first: who is called or named exactly so, who is near, whose names have the
        words as they are."""
        row = found.row
        user_id = row.user_id.casefold()
        localpart = user_id[1:].partition(":")[0]
        is_exact = text.removeprefix("@") in (user_id[1:], localpart) or bool(
            keys and keys == row.name_keys
        )
        is_whole = all(
            any(f" {key} " in f"{row.name_keys} {localpart} " for key in word) for word in words
        )
        return (
            self._locals_first and not row.is_local,
            not is_exact,
            not found.shares_room,
            not is_whole,
            row.display_name is None and row.avatar_url is None,
            row.name_keys,
            row.user_id,
        )


class DirectoryUpdates:
    """Keeps the directory: a job that works notes off, each in the write that removes it."""

    def __init__(
        self,
        database: Database,
        store: UserDirectoryStore,
        profiles: ProfileStore,
        folding: Folding,
        identity: ServerIdentity,
    ) -> None:
        self._database = database
        self._store = store
        self._profiles = profiles
        self._folding = folding
        self._identity = identity
        self._seen = -1
        """The position of the stream at which there was no note left."""

    async def do_step(self, limit: int) -> int:
        """Bring so many people up to date; how many it were. No query while nothing is written."""
        position = self._database.streams.current()
        if position == self._seen:
            return 0
        done = 0
        while done < limit:
            folding, changes, users = await self._database.read(
                "read_people", self._read, min(AT_ONCE, limit - done)
            )
            if folding != self._folding.name:
                await self._database.write("begin_directory", self._begin)
                continue
            if not changes:
                self._seen = position
                break
            await self._database.write("write_people", self._store.put_users, changes, users)
            done += len(changes)
        return done

    def _read(
        self, txn: Transaction, limit: int
    ) -> tuple[str | None, dict[str, int], list[tuple[DirectoryRow, list[str]]]]:
        changes = self._store.select_changes(txn, limit)
        ours = [user_id for user_id in changes if self._identity.is_local(user_id)]
        own = self._store.select_own(txn, ours)
        profiles = self._profiles.get_profiles_in(txn, own)
        users = [
            self._make(user_id, *_names_of(profiles.get(user_id, {})), is_local=True)
            for user_id in sorted(own)
        ]
        remote = self._store.select_remote_names(txn, changes.keys() - set(ours))
        users += [
            self._make(user_id, *choose_names(names), is_local=False)
            for user_id, names in remote.items()
        ]
        return select_note(txn, NAME), changes, users

    def _make(
        self, user_id: str, display_name: str | None, avatar_url: str | None, *, is_local: bool
    ) -> tuple[DirectoryRow, list[str]]:
        lines = self._folding.lines(display_name) if display_name else []
        row = DirectoryRow(user_id, is_local, display_name, avatar_url, format_words(lines))
        keys = [key for line in lines for key in line]
        localpart = user_id[1:].partition(":")[0]
        return row, list(dict.fromkeys((*keys, *self._folding.keys(localpart), user_id.casefold())))

    def _begin(self, txn: WriteTransaction) -> None:
        """The keys are made in another way than before: all have to be made anew."""
        self._store.note_everyone(txn)
        put_note(txn, NAME, self._folding.name)


def parse_words(folding: Folding, text: str) -> list[tuple[str, ...]]:
    """What is typed, as words with the spellings of each: beginnings of keys."""
    lines = folding.lines(text)
    if not lines:
        return []
    if any(len(line) != len(lines[0]) for line in lines):
        lines = lines[:1]
    words = [tuple(dict.fromkeys(spellings)) for spellings in zip(*lines, strict=True)]
    return list(dict.fromkeys(words))[:MAX_WORDS]


def choose_names(rooms: Iterable[RemoteName]) -> tuple[str | None, str | None]:
    """The name and the avatar of a user of another server that give away no secret of a room."""
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


def _id_beginning(text: str) -> str | None:
    """What an id may begin with, where the text may be the beginning of one: `@ali`,
    `ali:example.org`."""
    if not text.startswith("@") and ":" not in text:
        return None
    beginning = text.casefold()
    return beginning if beginning.startswith("@") else f"@{beginning}"


def _present(row: DirectoryRow) -> dict[str, str]:
    shown = {"user_id": row.user_id, "display_name": row.display_name, "avatar_url": row.avatar_url}
    return {name: value for name, value in shown.items() if value is not None}
