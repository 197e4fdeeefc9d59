"""The interface of an LDAP directory, and the types of its results.

This module does not import the LDAP library, which is loaded only if a directory is configured.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Protocol

import msgspec

from homeserver.services.upstream.identity import UpstreamIdentity


class DirectoryError(Exception):
    """A directory is not available, or its result is incomplete. `str()` is for the log."""


class DirectoryEntry(msgspec.Struct, frozen=True):
    """A person in a directory."""

    dn: str
    identity: UpstreamIdentity


class DirectoryPasswordCheck(msgspec.Struct, frozen=True):
    """The result of checking a name and a password."""

    entry: DirectoryEntry | None
    """The person; None if the password is wrong or there is no such person."""
    exists: bool = True
    """Whether the person exists; True if unknown."""


class DirectoryListing(msgspec.Struct, frozen=True):
    """The subjects of all persons in a directory, and the identities that changed."""

    present: set[str]
    changed: Sequence[UpstreamIdentity] = ()


ProfileHashes = tuple[str | None, str | None]
"""The last known hashes of a person's name and addresses (`hash_profile`); None: unknown."""


class DirectoryClient(Protocol):
    """A directory. Its methods block on the network; call them in threads."""

    def check_password(self, name: str, password: str) -> DirectoryPasswordCheck:
        """Check a password. `name`: as typed, without a domain. Raises `DirectoryError`."""
        ...

    def check_password_of(self, subject: str, password: str) -> DirectoryPasswordCheck:
        """Check a password as `check_password` does, for the person with this subject. Requires the
        mode `search`."""
        ...

    def list_persons(
        self, known: Mapping[str, ProfileHashes], max_changed: int, later: Set[str] = frozenset()
    ) -> DirectoryListing:
        """List all persons. Return as changed up to `max_changed` persons in `known` (by subject)
        whose name or addresses differ, followed by all such persons in `later`. Raises
        `DirectoryError`."""
        ...

    def find_subjects(self, subjects: Sequence[str]) -> set[str]:
        """Return which of these subjects exist. Raises `DirectoryError`."""
        ...
