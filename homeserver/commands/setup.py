"""Opens what commands need: configuration, signing key, database, HTTP client, thread pools.

On failure the functions raise `click.ClickException` with advice, which ends the command.
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
from homeserver.commands.init_files import InitFailed, read_signing_keys
from homeserver.config.configuration import Config
from homeserver.config.load import ConfigError, LoadedConfig, load_config
from homeserver.http.listeners import TlsContext
from homeserver.services.login.passwords import HashingThreads
from homeserver.services.pages.branding import read_branding
from homeserver.services.terms.policies import load_policies
from homeserver.wiring.databases import read_database_config
from homeserver.wiring.http_clients import HttpClientParts
from storage.engine.database import Database, open_database
from storage.engine.executors import ThreadExecutor
from storage.engine.interface import DatabaseUnavailable, UnsuitableDatabase
from storage.engine.migrate import MigrationFailed, SchemaTooNew
from storage.engine.observer import Observer
from storage.engine.postgres_config import PostgresConfig
from storage.engine.server_lock import DatabaseInUse, ServerLock
from storage.engine.sqlite import SQLiteConfig

DIRECTORY_THREADS = 8
MAX_DIRECTORY_THREADS_PER_CLIENT = 2
"""The thread limit for one client address, for SAML messages, and for checks of LDAP accounts."""
HASHING_THREADS = 2
MAX_QUEUED_CHECKS = 1000
MAX_QUEUED_CHECKS_PER_CLIENT = 200
"""Queued password checks (hashing, or LDAP) in total and for one address.

A whole school may share an address.
"""
DNS_THREADS = 8
"""Concurrent DNS look-ups."""

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
"""Errors of opening a database. Their texts say what to do."""


def load(paths: tuple[Path, ...]) -> LoadedConfig:
    """Load the configuration. Raises `click.ClickException` with all errors."""
    try:
        return load_config(paths, os.environ)
    except ConfigError as error:
        lines = "\n".join(f"  {line}" for line in error.lines)
        raise click.ClickException(f"the configuration cannot be used:\n{lines}") from error


def find_problems(config: Config) -> list[str]:
    """List what would stop a start besides errors in the configuration itself, a line each.

    Checks the files that the configuration names, and the connection parameters for PostgreSQL.
    """
    found = []
    database = read_database_config(config.storage.database, config.folder)
    if isinstance(database, PostgresConfig):
        try:
            # libpq checks its parameters without connecting
            make_dsn(**{name: str(value) for name, value in database.connect.items()})
        except psycopg2.ProgrammingError as error:
            found.append(f"database.args: {str(error).strip()}")
    try:
        read_signing_keys(config.signing_key_path)
    except InitFailed as error:
        found.append(f"signing_key_path: {error}")
    try:
        TlsTrust(authorities=config.federation.federation_custom_ca_list or None)
    except BadAuthorities as error:
        found.append(f"federation_custom_ca_list: {error}")
    try:
        read_branding(config.pages.branding, config.server_name)
        load_policies(config.pages.user_consent, "")
    except ValueError as error:
        found.append(str(error))
    network = config.network
    if any(listener.tls for listener in network.listeners):
        assert network.tls_certificate_path is not None  # the configuration was checked
        assert network.tls_private_key_path is not None
        try:
            TlsContext(
                certificate=network.tls_certificate_path, private_key=network.tls_private_key_path
            )
        except (OSError, SSL.Error) as error:
            found.append(f"tls_certificate_path, tls_private_key_path: {error}")
    return found


def read_key(config: Config) -> SigningKey:
    """Read the key that signs. Raises `click.ClickException`."""
    try:
        return read_signing_keys(config.signing_key_path)[0]
    except InitFailed as error:
        raise click.ClickException(str(error)) from error


def claim_storage(config: Config) -> None:
    """Lock an SQLite file until the process ends.

    Raises `click.ClickException` if another server uses it. PostgreSQL needs no lock.
    """
    database = read_database_config(config.storage.database, config.folder)
    if isinstance(database, SQLiteConfig):
        try:
            ServerLock.acquire(database)
        except DATABASE_ERRORS as error:
            raise click.ClickException(f"cannot open the database: {error}") from error


def open_storage(
    config: Config, reactor: ReactorBase, observer: Observer | None = None
) -> Database:
    """Open and migrate the database. Raises `click.ClickException`."""
    try:
        database = read_database_config(config.storage.database, config.folder)
        return open_database(database, reactor, observer)
    except DATABASE_ERRORS as error:
        raise click.ClickException(f"cannot open the database: {str(error).strip()}") from error


def open_outbound(config: Config, reactor: ReactorBase) -> HttpClientParts:
    """Build the HTTP clients. Raises `click.ClickException` for bad certificates or a bad proxy."""
    threads = ThreadExecutor(reactor=reactor, name="names", threads=DNS_THREADS, close_timeout=1.0)
    try:
        draw = Random(os.urandom(16)).random
        outbound = HttpClientParts(
            config=config, reactor=reactor, threads=threads, draw=draw, environment=os.environ
        )
    except BadAuthorities as error:
        raise click.ClickException(f"federation_custom_ca_list cannot be used: {error}") from error
    except BadProxy as error:
        raise click.ClickException(f"the environment variable https_proxy {error}") from error
    reactor.addSystemEventTrigger("during", "shutdown", outbound.close)
    return outbound


def start_hashing_threads(reactor: ReactorBase) -> HashingThreads:
    """Start a thread pool for hashing passwords, which stops with the reactor."""
    pool = ThreadPool(0, HASHING_THREADS, "passwords")
    pool.start()
    reactor.addSystemEventTrigger("during", "shutdown", pool.stop)
    return HashingThreads(
        reactor=reactor,
        pool=pool,
        max_queue=MAX_QUEUED_CHECKS,
        max_queue_per_key=MAX_QUEUED_CHECKS_PER_CLIENT,
    )


def start_directory_threads(reactor: ReactorBase) -> HashingThreads:
    """Start a thread pool for LDAP and SAML, which stops with the reactor."""
    pool = ThreadPool(0, DIRECTORY_THREADS, "directories")
    pool.start()
    reactor.addSystemEventTrigger("during", "shutdown", pool.stop)
    return HashingThreads(
        reactor=reactor,
        pool=pool,
        max_queue=MAX_QUEUED_CHECKS,
        max_queue_per_key=MAX_QUEUED_CHECKS_PER_CLIENT,
        max_threads_per_key=MAX_DIRECTORY_THREADS_PER_CLIENT,
    )
