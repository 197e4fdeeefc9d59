"""The command line: `python -m homeserver COMMAND`."""

import gc

if __name__ == "__main__":
    # Imports create 200,000 objects that stay. Garbage collection meanwhile takes half of the
    # start time. See `tune_garbage_collector`.
    gc.disable()

import os
import sqlite3
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TextIO, TypeVar, cast

import click
import psycopg2
from OpenSSL import SSL
from prometheus_client import CollectorRegistry
from twisted.internet import reactor as installed_reactor
from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IReactorSSL, IReactorTCP, IReactorTime, IReactorUNIX
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from federation.protocol.errors import MatrixError, WeakPassword
from homeserver.app import build
from homeserver.commands.init_files import (
    CONFIG_NAME,
    InitFailed,
    write_init_files,
    write_missing_key,
)
from homeserver.commands.process import (
    PidFile,
    ask_for_password,
    begin_logging,
    on_hangup,
    run_until_done,
    stop_on_signals,
    tune_garbage_collector,
)
from homeserver.commands.setup import (
    DATABASE_ERRORS,
    claim_storage,
    find_problems,
    load,
    open_outbound,
    open_storage,
    read_key,
    start_directory_threads,
    start_hashing_threads,
)
from homeserver.config.configuration import Config
from homeserver.config.load import ConfigError, load_config
from homeserver.config.sample import write_docs, write_sample
from homeserver.http.listeners import describe_listen_error
from homeserver.http.rate_limits import RateLimiter
from homeserver.observe.access_log import AccessLog, FormattedAccessLog
from homeserver.observe.database import DatabaseMetrics
from homeserver.observe.logs import LogFile
from homeserver.observe.metrics_page import write_metrics_page
from homeserver.server import Server
from homeserver.services.accounts.registration import RegistrationRequest
from homeserver.services.login.approvals import NoNewAccountTasks
from homeserver.services.scanning.rescans import RescanRunning, follow_rescan
from homeserver.services.upstream.oidc.callbacks import describe_redirect_uris
from homeserver.wiring.accounts import AccountParts
from homeserver.wiring.databases import read_database_config
from homeserver.wiring.email import EmailParts, smtp_relay
from homeserver.wiring.endpoints import declared_routes
from homeserver.wiring.login import LoginParts
from homeserver.wiring.media import start_media_threads
from homeserver.wiring.scanning import make_rescan_store, scans_files
from storage.engine.database import Database, SQLiteConfig, make_engine
from storage.engine.executors import InlineExecutor, ThreadExecutor
from storage.engine.interface import DatabaseUnavailable
from storage.maintenance.after_restore import (
    RestoreRepair,
    find_sqlite_damage,
    repair_after_restore,
)
from storage.maintenance.copy import CannotCopy, ProgressLines, copy_database

T = TypeVar("T")

SECONDS_TO_FLUSH = 1.0
"""The longest time for which lines of the access log are buffered."""
SECONDS_TO_STOP = 4.0
"""Time limit of a stop."""

config_option = click.option(
    "--config",
    "-c",
    "paths",
    type=click.Path(path_type=Path),
    multiple=True,
    default=(CONFIG_NAME,),
    show_default=True,
    help="Configuration file, or folder of *.yaml files; may be repeated.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Mahalla, a Matrix homeserver."""


@main.command("version")
def print_version() -> None:
    """Print the version."""
    try:
        click.echo(f"mahalla {version('mahalla')}")
    except PackageNotFoundError:
        click.echo("mahalla, not installed")


@main.command(short_help="Print every endpoint.")
def routes() -> None:
    """Print METHOD and PATH of every endpoint, one a line."""
    for method, path in declared_routes():
        click.echo(f"{method} {path}")


@main.command(short_help="Print the documentation of all metrics.")
def metrics() -> None:
    """Print the documentation page of all Prometheus metrics."""
    click.echo(write_metrics_page(), nl=False)


@main.command(short_help="Write a configuration and a signing key.")
@click.argument("server_name")
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=".",
    help="Where to write; default: the current folder.",
)
@click.option("--public-baseurl", help="Base URL for clients, with https://.")
def init(server_name: str, folder: Path, public_baseurl: str | None) -> None:
    """Write a configuration and a signing key for SERVER_NAME, as in user IDs.

    If there is a configuration for SERVER_NAME, only a missing signing key is created. Nothing is
    overwritten.
    """
    config = folder / CONFIG_NAME
    try:
        if config.exists():
            existing = load((config,)).config
            written: Sequence[Path] = [write_missing_key(existing, server_name, os.urandom)]
        else:
            written = write_init_files(folder, server_name, public_baseurl, os.urandom)
    except (InitFailed, OSError) as error:
        raise click.ClickException(str(error)) from error
    for path in written:
        click.echo(f"created {path}")


@main.group()
def config() -> None:
    """Check a configuration, or list all options."""


@config.command("check")
@config_option
def check(paths: tuple[Path, ...]) -> None:
    """Check the configuration, and report options that have no effect."""
    loaded = load(paths)
    for notice in loaded.notices:
        click.echo(notice)
    if found := find_problems(loaded.config):
        lines = "\n".join(f"  {line}" for line in found)
        raise click.ClickException(f"the server would not start:\n{lines}")
    for line in describe_redirect_uris(
        loaded.config.upstream.oidc_providers, loaded.config.name.public_baseurl
    ):
        click.echo(line)
    click.echo(f"The configuration of {loaded.config.server_name} is valid.")


@config.command("sample")
@click.option("--docs", is_flag=True, help="Print the documentation page instead.")
def sample(docs: bool) -> None:
    """Print a sample configuration with every option."""
    click.echo(write_docs() if docs else write_sample(), nl=False)


@main.command(short_help="Start the server.")
@config_option
def run(paths: tuple[Path, ...]) -> None:
    """Start the server and serve until SIGTERM or Ctrl-C."""
    loaded = load(paths)
    log_file = begin_logging(loaded.config.monitoring.log)
    log = Logger(namespace="homeserver")
    for notice in loaded.notices:
        log.warn("{notice}", notice=notice)
    for line in describe_redirect_uris(
        loaded.config.upstream.oidc_providers, loaded.config.name.public_baseurl
    ):
        log.info("{line}", line=line)
    reactor = cast(ReactorBase, installed_reactor)
    clock = cast(IReactorTime, reactor)
    key = read_key(loaded.config)
    registry = CollectorRegistry()
    observer = DatabaseMetrics(
        registry=registry, slow_seconds=loaded.config.monitoring.slow_query_threshold / 1000
    )
    outbound = open_outbound(loaded.config, reactor)
    claim_storage(loaded.config)
    database = open_storage(loaded.config, reactor, observer)
    try:
        server = build(
            loaded.config,
            clock,
            database,
            key=key,
            threads=start_hashing_threads(reactor),
            directory_threads=start_directory_threads(reactor),
            media_threads=start_media_threads(reactor, loaded.config.storage),
            mail_thread=ThreadExecutor(reactor=reactor, name="mail", threads=1, close_timeout=2.0),
            wire=outbound.wire,
            web=outbound.client,
            fetch=outbound.fetch,
            follow=outbound.follow,
            preview_web=outbound.previews,
            random=os.urandom,
            monotonic=time.monotonic,
            registry=registry,
            access_log=access_log(loaded.config, log_file),
        )
    except OSError as error:
        raise click.ClickException(
            f"the media store (media_store_path, media_object_store) cannot be used: {error}"
        ) from error
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    flushing = LoopingCall(log_file.flush)
    flushing.clock = clock
    stop_on_signals(reactor)
    reactor.addSystemEventTrigger(
        "before",
        "shutdown",
        lambda: Deferred.fromCoroutine(server.stop()).addTimeout(SECONDS_TO_STOP, clock),
    )
    failures: list[str] = []

    def start() -> None:
        try:
            server.start(
                cast(IReactorTCP, reactor), cast(IReactorSSL, reactor), cast(IReactorUNIX, reactor)
            )
        except (CannotListenError, OSError, SSL.Error) as error:
            failures.append(f"cannot listen: {describe_listen_error(error)}")
            reactor.stop()

    tune_garbage_collector()
    on_hangup(reactor, lambda: reload(server, paths, log))
    reactor.callWhenRunning(start)
    reactor.callWhenRunning(flushing.start, SECONDS_TO_FLUSH)
    reactor.addSystemEventTrigger("after", "shutdown", log_file.flush)
    with PidFile(loaded.config.monitoring.pid_file):
        reactor.run()
    if failures:
        raise click.ClickException(failures[0])


@main.command("create-user", short_help="Create an account.")
@config_option
@click.argument("name")
@click.option("--admin", is_flag=True, help="Make the account a server administrator.")
@click.option(
    "--password-file",
    type=click.File(),
    help="Read the password from a file (`-`: standard input) instead of the terminal.",
)
def create_user(
    paths: tuple[Path, ...], name: str, admin: bool, password_file: TextIO | None
) -> None:
    """Create the account NAME (`anna` or `@anna:SERVER_NAME`). The server may be running."""
    loaded = load(paths)
    localpart = localpart_of(name, loaded.config.server_name)

    async def register(accounts: AccountParts, login: LoginParts) -> str:
        await login.registration.check_username(localpart, privileged=True)
        # checked first, so that the operator does not enter a useless password
        if password_file is not None:
            password = password_file.readline().rstrip("\n")
        else:
            password = ask_for_password()
        try:
            accounts.passwords.check_policy(password)
        except WeakPassword as error:  # the operator decides; it may be for the first login only
            click.echo(
                f"warning: {error.text}; users cannot choose such a password. Change it on the "
                "account page (/_mahalla/account) after the first login.",
                err=True,
            )
        request = RegistrationRequest(
            username=localpart, password=password, inhibit_login=True, is_admin=admin
        )
        return (await login.registration.do_register_privileged(request)).user_id

    user_id = run_with_accounts(loaded.config, register)
    click.echo(f"created {user_id}" + (", an administrator" if admin else ""))


@main.command("create-registration-token", short_help="Create a registration token.")
@config_option
@click.option(
    "--uses",
    type=click.IntRange(1, 1_000_000),
    help="How many accounts it may create; default: no limit.",
)
@click.option(
    "--days", type=click.IntRange(1, 36_500), help="Days until it expires; default: never."
)
def create_registration_token(paths: tuple[Path, ...], uses: int | None, days: int | None) -> None:
    """Create and print a registration token, for use with `registration_requires_token`."""
    config = load(paths).config

    async def make(_accounts: AccountParts, login: LoginParts) -> str:
        seconds = None if days is None else days * 24 * 3600
        return await login.registration.do_create_token(uses_allowed=uses, seconds=seconds)

    click.echo(run_with_accounts(config, make))
    if not (
        config.registration.enable_registration and config.registration.registration_requires_token
    ):
        click.echo(
            "To use it, set `enable_registration` and `registration_requires_token` to true.",
            err=True,
        )


@main.command("rescan-media", short_help="Scan the media of the running server again.")
@config_option
@click.option("--days", type=click.IntRange(1, 36_500), help="Only media of the last N days.")
@click.option(
    "--follow",
    is_flag=True,
    help="Print progress until the scan ends, also of one that is already running.",
)
def rescan_media(paths: tuple[Path, ...], days: int | None, follow: bool) -> None:
    """Ask the running server to scan its media again in the background. A restart continues it."""
    config = load(paths).config
    if not scans_files(config):
        raise click.ClickException("this server scans no media: `media_scanning` names no scanner")
    clock = cast(IReactorTime, installed_reactor)

    async def rescan(database: Database) -> None:
        store = make_rescan_store(config.storage.media_scanning, database)
        now = int(clock.seconds() * 1000)
        since = 0 if days is None else now - days * 24 * 3600 * 1000
        if await store.start("administrator", now, since) is not None:
            click.echo("requested; the server begins within a minute")
        elif not follow:
            raise RescanRunning
        if follow:
            await follow_rescan(store, clock, click.echo)

    run_with_database(config, rescan)


@main.command("after-restore", short_help="Prepare a restored database for use.")
@config_option
def after_restore(paths: tuple[Path, ...]) -> None:
    """Prepare a database that was restored from a backup, before the server starts.

    Clients and other servers have seen changes that are newer than the backup.
    """
    config = load(paths).config
    where = read_database_config(config.storage.database, config.folder)
    if isinstance(where, SQLiteConfig) and not Path(where.path).exists():
        raise click.ClickException(
            f"there is no database {where.path}: copy the backup there first"
        )
    claim_storage(config)

    async def settle(database: Database) -> RestoreRepair | None:
        if database.engine.name == "sqlite":
            if damage := await database.read("find_sqlite_damage", find_sqlite_damage):
                raise click.ClickException(
                    f"{database.engine.location} is damaged ({damage}); the cause may be an old "
                    "file that ends in -wal: remove it and the one that ends in -shm, and "
                    "copy the backup again"
                )
        elif await database.get_nodes():
            return None
        return await database.write("repair_after_restore", repair_after_restore)

    repair = run_with_database(config, settle)
    if repair is None:
        raise click.ClickException(
            "the server is running: stop all its processes first, since they cache what will change"
        )
    click.echo(f"{repair.devices} devices will publish new one-time keys,")
    click.echo(f"the device lists of {repair.stale_lists} remote users will be fetched again,")
    click.echo(f"and other servers will fetch those of {repair.users} users; start the server now.")


@main.command("copy-database", short_help="Copy a database to an empty one.")
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path, exists=True),
    required=True,
    help="Configuration of the database to copy.",
)
@click.option(
    "--to",
    "target",
    type=click.Path(path_type=Path, exists=True),
    required=True,
    help="Configuration of the empty database.",
)
def copy(source: Path, target: Path) -> None:
    """Copy a database to an empty one, from SQLite to PostgreSQL or back.

    The server must be stopped.
    """
    old, new = load((source,)).config, load((target,)).config
    if old.server_name != new.server_name:
        raise click.ClickException(
            f"{source} is for {old.server_name}, but {target} is for {new.server_name}"
        )
    reading = make_engine(read_database_config(old.storage.database, old.folder))
    writing = make_engine(read_database_config(new.storage.database, new.folder))
    try:
        progress = ProgressLines(write=sys.stderr.write, clock=time.monotonic)
        copied = copy_database(reading, writing, progress.report)
    except (CannotCopy, *DATABASE_ERRORS) as error:
        raise click.ClickException(f"nothing was copied: {str(error).strip()}") from error
    rows, tables = sum(copied.tables.values()), len(copied.tables)
    click.echo(f"copied {rows} rows in {tables} tables to {writing.location}")


def reload(server: Server, paths: tuple[Path, ...], log: Logger) -> None:
    """Reload what may change while the server runs. A wrong configuration changes nothing."""
    try:
        loaded = load_config(paths, os.environ)
    except ConfigError as error:
        for line in error.lines:
            log.error("the configuration was not reloaded: {line}", line=line)
        return
    try:
        server.reload(loaded.config)
    except (OSError, ValueError, SSL.Error) as error:
        log.error("a certificate was not reloaded: {error}", error=error)
        return
    log.info("reloaded the configuration: federation policy and certificates")


def localpart_of(name: str, server_name: str) -> str:
    """Return the localpart of a name or user ID. Raises `ClickException` for a remote user."""
    if not name.startswith("@"):
        return name
    localpart, _, domain = name.removeprefix("@").partition(":")
    if domain not in ("", server_name):
        raise click.ClickException(
            f"{name} belongs to another server: accounts of this one end in :{server_name}"
        )
    return localpart


def run_with_accounts(
    config: Config, work: Callable[[AccountParts, LoginParts], Awaitable[T]]
) -> T:
    """Run `work` on the accounts. The server may be running. Raises `click.ClickException`."""
    reactor = cast(ReactorBase, installed_reactor)
    clock = cast(IReactorTime, reactor)

    async def with_accounts(database: Database) -> T:
        limiter = RateLimiter(clock=clock, rates={})
        registry = CollectorRegistry()
        try:
            email = EmailParts(
                config=config,
                clock=clock,
                database=database,
                limiter=limiter,
                executor=InlineExecutor(),
                make_relay=smtp_relay,
                random=os.urandom,
                registry=registry,
            )
        except ValueError as error:
            raise click.ClickException(str(error)) from error
        accounts = AccountParts(
            config=config,
            clock=clock,
            database=database,
            limiter=limiter,
            threads=start_hashing_threads(reactor),
            random=os.urandom,
            email=email,
            monotonic=time.monotonic,
            consents=None,
        )
        login = LoginParts(
            config=config,
            clock=clock,
            database=database,
            limiter=limiter,
            accounts=accounts,
            email=email,
            web=None,
            new_account_tasks=NoNewAccountTasks(),
            new_account_emails=None,
        )
        return await work(accounts, login)

    return run_with_database(config, with_accounts)


def run_with_database(config: Config, work: Callable[[Database], Awaitable[T]]) -> T:
    """Run `work` on the database. The server may be running. Raises `click.ClickException`."""
    reactor = cast(ReactorBase, installed_reactor)
    database = open_storage(config, reactor)

    async def work_and_close() -> T:
        try:
            return await work(database)
        finally:
            await database.close()

    try:
        return run_until_done(reactor, work_and_close)
    except MatrixError as error:
        raise click.ClickException(error.text) from error
    except (DatabaseUnavailable, sqlite3.OperationalError, psycopg2.OperationalError) as error:
        # the database was opened, but the disk is full, or permission is missing
        raise click.ClickException(
            f"cannot use the database, {database.engine.location}: {str(error).strip()}"
        ) from error


def access_log(config: Config, file: LogFile) -> AccessLog:
    """Log every request, or only slow ones if the log level hides information."""
    log = config.monitoring.log
    return FormattedAccessLog(
        write=file.write,
        write_soon=file.write_later,
        as_json=log.format == "json",
        slow_seconds=config.monitoring.slow_request_threshold / 1000,
        only_slow=log.level not in ("debug", "info"),
    )


if __name__ == "__main__":
    tune_garbage_collector()
    main()
