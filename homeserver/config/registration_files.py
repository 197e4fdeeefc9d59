"""Registration files of application services, read and checked.

spec: application-service-api#registration
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from federation.protocol.errors import InvalidUsername
from federation.protocol.ids import ServerName, parse_new_user_id
from homeserver.config.yaml_text import NotYaml, parse_yaml

SHORTEST_TOKEN = 16
"""In characters: who knows an `as_token` acts for everybody in its namespaces."""


class Namespace(msgspec.Struct, frozen=True):
    """Names that concern an application service. `exclusive`: nobody else may have them."""

    regex: str
    exclusive: bool


class Namespaces(msgspec.Struct, frozen=True):
    """All of them, by what they are of."""

    users: tuple[Namespace, ...] = ()
    aliases: tuple[Namespace, ...] = ()
    rooms: tuple[Namespace, ...] = ()


class RegistrationFile(msgspec.Struct, frozen=True):
    """What one file says, as far as this server goes by it."""

    id: str
    as_token: str
    hs_token: str
    sender_localpart: str
    namespaces: Namespaces
    url: str | None = None
    rate_limited: bool | None = True


def read_registration_file(path: Path) -> RegistrationFile:
    """One file. Raises `ValueError` with what is wrong with it."""
    try:
        document = parse_yaml(path.read_text(encoding="utf-8"))
        read = msgspec.convert(document.values, RegistrationFile)
    except (OSError, UnicodeDecodeError, NotYaml, msgspec.ValidationError) as error:
        raise ValueError(f"{path}: {error}") from error
    try:
        parse_new_user_id(read.sender_localpart, ServerName("example.org"))
    except InvalidUsername as error:
        raise ValueError(f"{path}: sender_localpart cannot be a user name: {error}") from error
    if not read.id or len(read.as_token) < SHORTEST_TOKEN or not read.as_token.isascii():
        raise ValueError(
            f"{path}: needs `id`, and an `as_token` of at least {SHORTEST_TOKEN} characters"
        )
    for namespace in (*read.namespaces.users, *read.namespaces.aliases, *read.namespaces.rooms):
        try:
            re.compile(namespace.regex)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(
                f"{path}: {namespace.regex!r} is no regular expression: {error}"
            ) from error
    return read


def read_registration_files(paths: Sequence[Path]) -> tuple[RegistrationFile, ...]:
    """All of them. Raises `ValueError`, also where two have the same id, token or sender."""
    files = tuple(map(read_registration_file, paths))
    for name in ("id", "as_token", "sender_localpart"):
        values = [getattr(file, name) for file in files]
        if len(set(values)) < len(values):
            raise ValueError(f"two registration files have the same {name}")
    return files


def complaints_of(paths: Sequence[Path]) -> Iterator[str]:
    """What is wrong with them, if anything."""
    try:
        read_registration_files(paths)
    except ValueError as error:
        yield str(error)
