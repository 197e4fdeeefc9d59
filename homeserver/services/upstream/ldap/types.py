"""What a directory can be asked, and what it answers; without the library that asks it, which only
those load who use it."""

from collections.abc import Mapping, Sequence, Set
from typing import Protocol

import msgspec

from homeserver.services.upstream.identity import UpstreamIdentity


class DirectoryFailed(Exception):
    """A directory could not be asked, or gave no complete answer. `str()` is for the log."""


class Entry(msgspec.Struct, frozen=True):
    """Somebody in a directory."""

    dn: str
    identity: UpstreamIdentity


class Verdict(msgspec.Struct, frozen=True):
    """What a directory says of a name and a password."""

    entry: Entry | None
    """Whose they are; None where the password is wrong, or there is no such person."""
    exists: bool = True
    """Whether it has such a person at all; True where it did not say."""


class Listing(msgspec.Struct, frozen=True):
    """Everybody in a directory, by subject, and of whom it now says something else than what was
    known of it."""

    present: set[str]
    changed: Sequence[UpstreamIdentity] = ()


Said = tuple[str | None, str | None]
"""What `compute_said` made of what was known of somebody; None: it is not known."""


class AskedDirectory(Protocol):
    """A directory. Its methods wait for the network: they are for threads."""

    def check_password(self, name: str, password: str) -> Verdict:
        """Raises `DirectoryFailed`. `name`: as people type it, without a domain."""
        ...

    def check_password_of(self, subject: str, password: str) -> Verdict:
        """As `check_password`, of the person with this subject. Needs the mode `search`."""
        ...

    def list_people(
        self, known: Mapping[str, Said], most: int, later: Set[str] = frozenset()
    ) -> Listing:
        """Everybody, and up to `most` of those in `known` (by subjects) whose name or addresses are
        others now, and all of those in `later` after them. Raises `DirectoryFailed`."""
        ...

    def find_subjects(self, subjects: Sequence[str]) -> set[str]:
        """Those of these that it has. Raises `DirectoryFailed`."""
        ...
