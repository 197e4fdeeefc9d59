"""Reads and checks registration files of application services.

spec: application-service-api#registration
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from federation.protocol.errors import InvalidUsername
from federation.protocol.ids import ServerName, parse_new_user_id
from homeserver.config.yaml_text import InvalidYaml, parse_yaml

MIN_TOKEN_LENGTH = 16
"""In characters. A caller with an `as_token` acts for all users in its namespaces."""


class Namespace(msgspec.Struct, frozen=True):
    """A namespace of an application service. If `exclusive`, nobody else may use its names."""

    regex: str
    exclusive: bool


class Namespaces(msgspec.Struct, frozen=True):
    """The namespaces of an application service by kind."""

    users: tuple[Namespace, ...] = ()
    aliases: tuple[Namespace, ...] = ()
    rooms: tuple[Namespace, ...] = ()


class RegistrationFile(msgspec.Struct, frozen=True):
    """The parts of a registration file that this server uses."""

    id: str
    as_token: str
    hs_token: str
    sender_localpart: str
    namespaces: Namespaces
    url: str | None = None
    rate_limited: bool | None = True


def read_registration_file(path: Path) -> RegistrationFile:
    """Read one file. Raises `ValueError` with the reason if it is not valid."""
    try:
        document = parse_yaml(path.read_text(encoding="utf-8"))
        registration = msgspec.convert(document.values, RegistrationFile)
    except (OSError, UnicodeDecodeError, InvalidYaml, msgspec.ValidationError) as error:
        raise ValueError(f"{path}: {error}") from error
    try:
        parse_new_user_id(registration.sender_localpart, ServerName("example.org"))
    except InvalidUsername as error:
        raise ValueError(f"{path}: sender_localpart cannot be a user name: {error}") from error
    if (
        not registration.id
        or len(registration.as_token) < MIN_TOKEN_LENGTH
        or not registration.as_token.isascii()
    ):
        raise ValueError(
            f"{path}: needs `id`, and an `as_token` of at least {MIN_TOKEN_LENGTH} characters"
        )
    for namespace in (
        *registration.namespaces.users,
        *registration.namespaces.aliases,
        *registration.namespaces.rooms,
    ):
        try:
            re.compile(namespace.regex)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(
                f"{path}: {namespace.regex!r} is not a valid regular expression: {error}"
            ) from error
    return registration


def read_registration_files(paths: Sequence[Path]) -> tuple[RegistrationFile, ...]:
    """Read all files. Raises `ValueError`, also if two have the same ID, token or sender."""
    files = tuple(map(read_registration_file, paths))
    for name in ("id", "as_token", "sender_localpart"):
        values = [getattr(file, name) for file in files]
        if len(set(values)) < len(values):
            raise ValueError(f"two registration files have the same {name}")
    return files


def find_errors(paths: Sequence[Path]) -> Iterator[str]:
    """Return the error in the files, if any."""
    try:
        read_registration_files(paths)
    except ValueError as error:
        yield str(error)
