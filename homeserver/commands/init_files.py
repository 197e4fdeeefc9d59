"""The files that a server begins with: a configuration, a signing key, a folder for data. Nothing
is overwritten."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from federation.protocol.ids import is_server_name
from federation.protocol.signing import SigningKey, format_signing_keys, parse_signing_keys
from homeserver.config.configuration import Config
from homeserver.services.tokens.secret_tokens import RandomBytes

CONFIG_NAME = "homeserver.yaml"

FIRST_CONFIG = """\
# A homeserver for {server_name}. Every option is in docs/operators/configuration.md and homeserver.yaml.sample;
# `python -m homeserver config check` says whether this file is right.

server_name: {quoted_name}
{baseurl_line}
listeners:
  - port: 8008
    bind_addresses: ["::1", "127.0.0.1"]
    # true behind a reverse proxy, which sends the address of the client
    x_forwarded: false
    resources:
      - names: [client, federation]

# For more than some hundred people: PostgreSQL.
#   name: psycopg2
#   args: {{user: mahalla, dbname: mahalla, host: localhost, cp_min: 2, cp_max: 8}}
database:
  name: sqlite3
  args:
    database: homeserver.db

signing_key_path: {key_name}

# Administrators make accounts with `python -m homeserver create-user`. To let people register: true, together with
# `registration_requires_token: true`, or with `enable_registration_without_verification: true` for everybody.
enable_registration: false
"""


class CannotInit(Exception):
    """The files cannot be made. `str()` says why."""


def write_first_files(
    folder: Path, server_name: str, public_baseurl: str | None, random: RandomBytes
) -> Sequence[Path]:
    """Make the folder and the files in it; the paths of what was made. Raises `CannotInit` and
    changes nothing where there is a configuration already (for that there is `write_missing_key`);
    a signing key that is there is kept."""
    if not is_server_name(server_name):
        raise CannotInit(
            f"{server_name!r} is not a server name: a host name, with :PORT if need be"
        )
    if public_baseurl and not public_baseurl.startswith(("https://", "http://")):
        raise CannotInit(
            f"{public_baseurl!r} is not an address for clients: it starts with https:// or http://"
        )
    config = folder / CONFIG_NAME
    key = folder / f"{server_name}.signing.key"
    if config.exists():
        raise CannotInit(f"{config} is there already, and is left as it is")
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    if not key.exists():
        _write_key(key, random)
        made.append(key)
    baseurl_line = f"public_baseurl: {json.dumps(public_baseurl)}\n" if public_baseurl else ""
    text = FIRST_CONFIG.format(
        server_name=server_name,
        quoted_name=json.dumps(server_name),
        baseurl_line=baseurl_line,
        key_name=json.dumps(key.name),
    )
    _write_new(config, text, 0o600)
    return [*made, config]


def write_missing_key(config: Config, server_name: str, random: RandomBytes) -> Path:
    """Make the signing key that a configuration names and that is not there; its path. Raises
    `CannotInit` and changes nothing where the configuration is for another server, or nothing is
    missing."""
    if config.server_name != server_name:
        raise CannotInit(
            f"there is already a configuration in {config.folder}, for {config.server_name}"
        )
    key = config.signing_key_path
    if key.exists():
        raise CannotInit(f"{config.folder / CONFIG_NAME} is there already, and is left as it is")
    _write_key(key, random)
    return key


def _write_key(path: Path, random: RandomBytes) -> None:
    name = "a_" + random(3).hex()
    _write_new(path, format_signing_keys([SigningKey(name, random(32))]), 0o600)


def _write_new(path: Path, text: str, mode: int) -> None:
    with os.fdopen(
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8"
    ) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read_signing_keys(path: Path) -> Sequence[SigningKey]:
    """The keys of a file; the first one signs. Raises `CannotInit`."""
    try:
        return parse_signing_keys(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CannotInit(
            f"there is no signing key {path}: put it back from your backup; where there never was one, "
            "`python -m homeserver init SERVER_NAME --folder FOLDER` makes it"
        ) from error
    except (OSError, ValueError) as error:
        raise CannotInit(f"the signing key {path} cannot be read: {error}") from error
