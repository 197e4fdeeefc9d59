"""What commands open before they work: the configuration, the key, the database, the way out,
threads.

Where one of them cannot be had, the command ends there with what to do (`click.ClickException`).
"""

import os
import sqlite3
from pathlib import Path
from random import Random

import click
import psycopg2
from OpenSSL import SSL
from psycopg2.extensions import make_dsn
from twisted.internet.base import ReactorBase
from twisted.python.threadpool import ThreadPool

from federation.http_client.proxy import BadProxy
from federation.http_client.tls import BadAuthorities, TlsTrust
from federation.protocol.signing import SigningKey
from homeserver.commands.init_files import CannotInit, read_signing_keys
from homeserver.config.configuration import Config
from homeserver.config.load import ConfigError, Loaded, load_config
from homeserver.http.listeners import TlsContext
from homeserver.services.login.passwords import HashingThreads
from homeserver.services.pages.branding import branding_of
from homeserver.services.terms.policies import policies_of
from homeserver.wiring.databases import database_config_of
from homeserver.wiring.http_clients import OutboundParts
from storage.engine.database import Database, open_database
from storage.engine.executors import ThreadExecutor
from storage.engine.interface import DatabaseUnavailable, UnsuitableDatabase
from storage.engine.migrate import MigrationFailed, SchemaTooNew
from storage.engine.observer import Observer
from storage.engine.postgres_config import PostgresConfig
from storage.engine.sole_server import DatabaseInUse, SoleServer
from storage.engine.sqlite import SQLiteConfig

WAITING_THREADS = 8
MOST_WAITING_OF_ONE = 2
"""Of these threads, for one address; as many for all work on SAML messages, and for looks at who is
in a directory."""
HASHING_THREADS = 2
MOST_HASHES = 1000
MOST_HASHES_OF_ONE = 200
"""Passwords that wait to be hashed, or for a directory, in all and for one address, which may be
that of a whole school."""
NAME_THREADS = 8
"""How many names of servers are looked up at the same time."""

DATABASE_ERRORS = (
    DatabaseInUse,
    DatabaseUnavailable,
    MigrationFailed,
    SchemaTooNew,
    UnsuitableDatabase,
    OSError,
    sqlite3.Error,
    psycopg2.Error,
)
"""What opening a database may raise; each text says what to do."""


def load(paths: tuple[Path, ...]) -> Loaded:
    """The configuration, or the end of the command with all that is wrong."""
    try:
        return load_config(paths, os.environ)
    except ConfigError as error:
        lines = "\n".join(f"  {line}" for line in error.lines)
        raise click.ClickException(f"the configuration cannot be used:\n{lines}") from error


def obstacles(config: Config) -> list[str]:
    """What is wrong with the files that a server with this configuration needs to start, and with
    what is to be said to its database, a line each."""
    found = []
    database = database_config_of(config.storage.database, config.folder)
    if isinstance(database, PostgresConfig):
        try:
            # libpq knows its parameters without a connection
            make_dsn(**{name: str(value) for name, value in database.connect.items()})
        except psycopg2.ProgrammingError as error:
            found.append(f"database.args: {str(error).strip()}")
    try:
        read_signing_keys(config.signing_key_path)
    except CannotInit as error:
        found.append(f"signing_key_path: {error}")
    try:
        TlsTrust(config.federation.federation_custom_ca_list or None)
    except BadAuthorities as error:
        found.append(f"federation_custom_ca_list: {error}")
    try:
        branding_of(config.pages.branding, config.server_name)
        policies_of(config.pages.user_consent, "")
    except ValueError as error:
        found.append(str(error))
    network = config.network
    if any(listener.tls for listener in network.listeners):
        assert network.tls_certificate_path is not None  # the configuration was checked
        assert network.tls_private_key_path is not None
        try:
            TlsContext(network.tls_certificate_path, network.tls_private_key_path)
        except (OSError, SSL.Error) as error:
            found.append(f"tls_certificate_path, tls_private_key_path: {error}")
    return found


def read_key(config: Config) -> SigningKey:
    """The key that signs; a server without one does not start."""
    try:
        return read_signing_keys(config.signing_key_path)[0]
    except CannotInit as error:
        raise click.ClickException(str(error)) from error


def claim_storage(config: Config) -> None:
    """Be the only server of an SQLite file until the process ends; the end of the command where
    there is another."""
    database = database_config_of(config.storage.database, config.folder)
    if isinstance(database, SQLiteConfig):
        try:
            SoleServer.claim(database)
        except DATABASE_ERRORS as error:
            raise click.ClickException(f"cannot open the database: {error}") from error


def open_storage(
    config: Config, reactor: ReactorBase, observer: Observer | None = None
) -> Database:
    """Open and migrate the database. A failure ends the command."""
    try:
        return open_database(
            database_config_of(config.storage.database, config.folder), reactor, observer
        )
    except DATABASE_ERRORS as error:
        raise click.ClickException(f"cannot open the database: {str(error).strip()}") from error


def open_outbound(config: Config, reactor: ReactorBase) -> OutboundParts:
    """The way to other servers; the end of the command where the certificates that it needs cannot
    be read."""
    threads = ThreadExecutor(reactor, "names", NAME_THREADS, patience=1.0)
    try:
        outbound = OutboundParts(
            config, reactor, threads, Random(os.urandom(16)).random, os.environ
        )
    except BadAuthorities as error:
        raise click.ClickException(f"federation_custom_ca_list cannot be used: {error}") from error
    except BadProxy as error:
        raise click.ClickException(
            f"the variable https_proxy of the environment {error}"
        ) from error
    reactor.addSystemEventTrigger("during", "shutdown", outbound.close)
    return outbound


def hashing_threads(reactor: ReactorBase) -> HashingThreads:
    """Threads for passwords, which end with the reactor."""
    pool = ThreadPool(0, HASHING_THREADS, "passwords")
    pool.start()
    reactor.addSystemEventTrigger("during", "shutdown", pool.stop)
    return HashingThreads(
        reactor, pool, longest_queue=MOST_HASHES, longest_queue_of_one=MOST_HASHES_OF_ONE
    )


def waiting_threads(reactor: ReactorBase) -> HashingThreads:
    """Threads for what waits for directories, which end with the reactor; none before they are
    needed."""
    pool = ThreadPool(0, WAITING_THREADS, "directories")
    pool.start()
    reactor.addSystemEventTrigger("during", "shutdown", pool.stop)
    return HashingThreads(
        reactor,
        pool,
        longest_queue=MOST_HASHES,
        longest_queue_of_one=MOST_HASHES_OF_ONE,
        most_of_one=MOST_WAITING_OF_ONE,
    )
