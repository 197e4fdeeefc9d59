"""Reads configuration files into a `Config`, and collects the errors and notices about all options.

A key that is no option of this server is looked up among the keys that Synapse knows
(`synapse_keys.tsv`). If Synapse knows the key, the key has no effect and causes a notice. Any other
unknown key is an error. The error message suggests a similar known key if there is one.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from federation.peers.signed_list import read_authorities
from federation.protocol.errors import InvalidParam
from federation.protocol.ids import is_server_name
from federation.protocol.signing import parse_public_key
from homeserver.config.configuration import GROUPS, Config
from homeserver.config.email import make_sender
from homeserver.config.oembed_files import find_errors as provider_complaints
from homeserver.config.option import get_description
from homeserver.config.outgoing import FederationMemberListOptions
from homeserver.config.read import (
    Problem,
    ReadState,
    format_place,
    format_value,
    iterate_options,
    read_fields,
    rename_former_keys,
)
from homeserver.config.registration_files import find_errors
from homeserver.config.retention import find_errors as retention_complaints
from homeserver.config.server import DatabaseOptions
from homeserver.config.upstream_checks import check_upstream
from homeserver.config.yaml_text import InvalidYaml, Place, YamlDocument, parse_yaml

REASONS = {
    "later": "not implemented yet",
    "workers": "this server has no workers; every node runs the same program",
    "tuning": "this server needs no tuning of this kind",
    "log": "logging is set up in the section `log`",
    "macaroons": "this server's access tokens are random, and not derived from a secret",
    "statistics": "this server sends no reports",
    "process": "systemd, or another program that starts the server, does this",
    "plugins": (
        "this server does not run plug-ins written for Synapse; use `plugins` for its own plug-ins"
    ),
    "object_store": "use `media_object_store` for a store such as S3",
    "oauth": "this server has a built-in OAuth 2.0 API (`oauth`)",
    "names": "this server never sends device names to other servers",
    "identity": "this server never searches for users at identity servers",
    "presence": "use `presence.enabled`, which is on by default",
    "obsolete": "Synapse itself has dropped or never documented it",
    "experimental": "this is an experimental feature of Synapse",
    "policies": "use `user_consent.policies`, where each document has its version, name and text",
    "redacted": "this server removes redacted content immediately",
    "default": "this server always behaves this way",
    "providers": (
        "this server has no built-in providers; it only uses `oembed.additional_providers`"
    ),
}
"""The reasons why a key of Synapse has no effect, by the word in `synapse_keys.tsv`."""


class ConfigError(Exception):
    """The files are not valid. `lines` holds all errors, one sentence each, with file and line."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__("\n".join(lines))
        self.lines = tuple(lines)


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A configuration, and notices about keys without effect and about former names."""

    config: Config
    notices: tuple[str, ...]


def load_config(paths: Sequence[Path], environment: Mapping[str, str]) -> LoadedConfig:
    """Read configuration files. Raises `ConfigError`.

    A key in a later file replaces that of an earlier one. A folder stands for its `*.yaml` files in
    the order of their names. `environment` may override secrets.
    """
    files = [file for path in paths for file in _files(path)]
    sources: dict[str, tuple[Path, YamlDocument]] = {}
    values: dict[str, Any] = {}
    for file in files:
        document = _read_file(file)
        values |= document.values
        sources |= dict.fromkeys(document.values, (file, document))
    reading = ReadState(folder=files[0].parent.absolute(), environment=environment)
    config, notices = _build(values, reading)
    if config is not None:
        invalid = [problem.place for problem in reading.problems]
        # Defaults replace wrong values; they need no further checks
        reading.problems.extend(
            problem
            for problem in _check_together(config)
            if not any(place[: len(problem.place)] == problem.place for place in invalid)
        )
    if reading.problems or config is None:
        raise ConfigError(_locate(reading.problems, files, sources, reading.former))
    return LoadedConfig(config, _locate(notices, files, sources, reading.former))


def _files(path: Path) -> list[Path]:
    try:
        files = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
    except OSError as error:
        raise ConfigError([_describe_unreadable(path, error)]) from error
    if not files:
        raise ConfigError([f"{path}: there is no *.yaml file in this folder"])
    return files


def _read_file(path: Path) -> YamlDocument:
    try:
        return parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        text = (
            f"{path}: file not found; give its path with `--config`, "
            "or create one with `mahalla init`"
        )
        raise ConfigError([text]) from error
    except OSError as error:
        raise ConfigError([_describe_unreadable(path, error)]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: is not text in UTF-8"]) from error
    except InvalidYaml as error:
        raise ConfigError([f"{path}: {error}"]) from error


def _describe_unreadable(path: Path, error: OSError) -> str:
    return (
        f"{path}: cannot be read: {error.strerror}; give its path with `--config`, or run the "
        "command as the user of the server"
    )


def _locate(
    problems: Sequence[Problem],
    files: Sequence[Path],
    sources: Mapping[str, tuple[Path, YamlDocument]],
    former: Mapping[Place, Place],
) -> tuple[str, ...]:
    """Return the problems with file and line, in the order of files and lines. `former`: the places
    in the files of options that they set by a former key."""
    found = []
    for problem in problems:
        place = _find_in_file(problem.place, former)
        top = place[0] if place else None
        if not isinstance(top, str) or top not in sources:
            found.append((0, 0, f"{files[0]}: {problem}"))
            continue
        file, document = sources[top]
        while place and place not in document.lines:
            place = place[:-1]
        line = document.lines[place]
        found.append((files.index(file), line, f"{file}:{line}: {problem}"))
    return tuple(text for _, _, text in sorted(found, key=lambda each: each[:2]))


def _find_in_file(place: Place, former: Mapping[Place, Place]) -> Place:
    """Return the place with the keys that the file has."""
    for length in range(len(place), 0, -1):
        place = (*former.get(place[:length], place[:length]), *place[length:])
    return place


def _build(values: Mapping[str, Any], reading: ReadState) -> tuple[Config | None, list[Problem]]:
    known: dict[str, str] = {}
    groups: dict[str, Any] = {}
    for name, kind in GROUPS.items():
        values = rename_former_keys(kind, values, (), reading)
        options = read_fields(kind, values, (), reading, known)
        groups[name] = None if options is None else kind(**options)
    reading.unknown.extend(((key,), values[key], known) for key in values if key not in known)
    notices = _classify_unknown(reading) + _not_implemented(reading) + _former_names(reading)
    if any(group is None for group in groups.values()):
        return None, notices
    config = Config(**groups, folder=reading.folder)
    return config, notices + _partly_implemented(config) + _missing_companions(config)


def _classify_unknown(reading: ReadState) -> list[Problem]:
    """Turn keys of Synapse into notices, and all other unknown keys into problems."""
    synapse = synapse_keys()
    notices = []
    for place, value, known in reading.unknown:
        pattern = format_place(tuple(step for step in place if isinstance(step, str)))
        if pattern in synapse:
            notices.append(Problem(place, f"has no effect: {REASONS[synapse[pattern]]}"))
            continue
        nearest = _nearest_key(str(place[-1]), place, known, synapse)
        hint = f"; did you mean {nearest}?" if nearest else ""
        reading.add_problem(place, f"unknown option (its value is {format_value(value)}){hint}")
    return notices


def _nearest_key(
    key: str, place: Place, known: Mapping[str, str], synapse: Mapping[str, str]
) -> str | None:
    prefix = ".".join(str(step) for step in place[:-1] if isinstance(step, str))
    siblings = [name.rpartition(".")[2] for name in synapse if name.rpartition(".")[0] == prefix]
    for candidates in (known, {name: name for name in siblings}):
        if found := difflib.get_close_matches(key.lower(), list(candidates), n=1, cutoff=0.7):
            return candidates[found[0]]
    return None


def _not_implemented(reading: ReadState) -> list[Problem]:
    notices = []
    for place in sorted(reading.used & options_without_effect(), key=str):
        notices.append(Problem(place, f"has no effect: {REASONS['later']}"))
    return notices


def _former_names(reading: ReadState) -> list[Problem]:
    """Return a notice about each option that is set by a former name."""
    text = "is now {}; the former name works in this release and not in the next one"
    notices = [
        Problem(former, text.format(format_place(current)))
        for current, former in reading.former.items()
    ]
    for former, current in reading.former_variables.items():
        notices.append(Problem((), f"the environment variable {former} {text.format(current)}"))
    return notices


def _partly_implemented(config: Config) -> list[Problem]:
    if not config.integrations.app_service_config_files:
        return []
    text = (
        "is partly implemented: application services log in and act for their users, "
        "but receive no transactions yet"
    )
    return [Problem(("app_service_config_files",), text)]


def _missing_companions(config: Config) -> list[Problem]:
    """Return notices about options that have no effect because another option is missing."""
    notices = []
    if config.mail.email.enable_notifs and config.mail.email.smtp_host is None:
        notices.append(
            Problem(
                ("email", "enable_notifs"),
                "has no effect without `email.smtp_host`: this server sends no e-mails",
            )
        )
    serves_metrics = [
        listener.type == "metrics"
        or any("metrics" in resource.names for resource in listener.resources)
        for listener in config.network.listeners
    ]
    if config.monitoring.enable_metrics and not any(serves_metrics):
        text = "has no effect without a listener of `type: metrics` or with the resource `metrics`"
        notices.append(Problem(("enable_metrics",), text))
    if not config.monitoring.enable_metrics:
        text = "serves no metrics without `enable_metrics: true`"
        notices.extend(
            Problem(("listeners", at), text) for at, shows in enumerate(serves_metrics) if shows
        )
    return notices


def options_without_effect() -> set[Place]:
    """Return the options that are known but not implemented yet."""
    silent: set[Place] = set()
    for kind in GROUPS.values():
        for place, _kind, declared in iterate_options(kind):
            if get_description(declared).not_implemented:
                silent.add(place)
    return silent


def synapse_keys() -> dict[str, str]:
    """Return the keys of Synapse that have no option here, each with a word of `REASONS`."""
    text = (
        resources.files("homeserver.config")
        .joinpath("synapse_keys.tsv")
        .read_text(encoding="utf-8")
    )
    return dict(line.split("\t") for line in text.splitlines() if line and not line.startswith("#"))


def _check_together(config: Config) -> list[Problem]:
    """Check options that depend on each other."""
    problems = []
    network = config.network
    for at, listener in enumerate(network.listeners):
        place: Place = ("listeners", at)
        if (listener.port is None) == (listener.path is None):
            problems.append(Problem(place, "must have either `port` or `path`"))
        if listener.tls and listener.path is not None:
            problems.append(Problem(place, "a Unix socket has no TLS; leave `tls` out"))
        if listener.tls and not (network.tls_certificate_path and network.tls_private_key_path):
            problems.append(
                Problem(place, "`tls` needs `tls_certificate_path` and `tls_private_key_path`")
            )
    for key_id, old in config.keys.old_signing_keys.items():
        try:
            parse_public_key(key_id, old.key)
        except InvalidParam as error:
            problems.append(Problem(("old_signing_keys", key_id), f"is not a valid key: {error}"))
    for at, key_server in enumerate(config.federation.trusted_key_servers):
        if not is_server_name(key_server.server_name):
            problems.append(
                Problem(("trusted_key_servers", at, "server_name"), "must be a server name")
            )
        for key_id, key in key_server.verify_keys.items():
            try:
                parse_public_key(key_id, key)
            except InvalidParam as error:
                problems.append(
                    Problem(
                        ("trusted_key_servers", at, "verify_keys", key_id),
                        f"is not a valid key: {error}",
                    )
                )
    peering = config.federation.federation
    if peering.destination_min_retry_interval > peering.destination_max_retry_interval:
        problems.append(
            Problem(
                ("federation", "destination_min_retry_interval"),
                "must not be more than `destination_max_retry_interval`",
            )
        )
    problems += [
        Problem(("retention", *place), text)
        for place, text in retention_complaints(config.rooms.retention)
    ]
    problems += _check_member_list(config.federation.federation_member_list)
    registration = config.registration
    if (
        registration.enable_registration
        and not registration.registration_requires_token
        and not registration.enable_registration_without_verification
        and not config.captcha.enable_registration_captcha
        and not config.mail.registrations_require_3pid
    ):
        problems.append(
            Problem(
                ("enable_registration",),
                "opens the server to anybody. Set `registration_requires_token: true`, or confirm "
                "it with "
                "`enable_registration_without_verification: true`",
            )
        )
    captcha = config.captcha
    if captcha.enable_registration_captcha:
        if not captcha.recaptcha_public_key:
            problems.append(
                Problem(("recaptcha_public_key",), "is needed with `enable_registration_captcha`")
            )
        if not captcha.recaptcha_private_key and not config.upstream.plugins:
            problems.append(
                Problem(("recaptcha_private_key",), "is needed with `enable_registration_captcha`")
            )
    problems += _check_mail(config)
    problems += _check_text_messages(config)
    problems += _check_consent(config)
    branding = config.pages.branding
    if branding.logo_dark is not None and branding.logo is None:
        problems.append(Problem(("branding", "logo_dark"), "needs `logo`, which light pages show"))
    problems += _check_account_validity(config)
    paths = config.integrations.app_service_config_files
    problems += [Problem(("app_service_config_files",), text) for text in find_errors(paths)]
    providers = config.previews.oembed.additional_providers
    problems += [
        Problem(("oembed", "additional_providers"), text) for text in provider_complaints(providers)
    ]
    if config.storage.refuse_unremovable_locations and not config.storage.remove_photo_locations:
        problems.append(
            Problem(("refuse_unremovable_locations",), "needs `remove_photo_locations`")
        )
    problems += check_upstream(config.upstream, config.name.public_baseurl)
    return problems + _check_database(config.storage.database)


def _check_database(database: DatabaseOptions) -> list[Problem]:
    place: Place = ("database", "args")
    problems = [
        Problem((*place, name), f"got {format_value(value)}; want a whole number")
        for name in ("cp_min", "cp_max")
        if type(value := database.args.get(name, 1)) is not int
    ]
    if database.name == "sqlite3" and (
        extra := set(database.args) - {"database", "cp_min", "cp_max"} - SQLITE_IGNORED
    ):
        text = (
            f"SQLite takes only `database`, not {', '.join(sorted(extra))}; "
            "for PostgreSQL `name` is psycopg2"
        )
        problems.append(Problem(place, text))
    return problems


def _check_account_validity(config: Config) -> list[Problem]:
    account_validity = config.sessions.account_validity
    place: Place = ("account_validity",)
    if not account_validity.enabled:
        return []
    if account_validity.period is None:
        return [Problem(place, "needs `period`, how long an account is valid")]
    if account_validity.renew_at is None:
        return []
    problems = []
    if account_validity.renew_at >= account_validity.period:
        problems.append(Problem((*place, "renew_at"), "must be less than `period`"))
    if config.mail.email.smtp_host is None or config.name.public_baseurl is None:
        problems.append(
            Problem(
                (*place, "renew_at"),
                "needs `email.smtp_host` and `public_baseurl` to send e-mails with links",
            )
        )
    return problems


def _check_member_list(members: FederationMemberListOptions) -> list[Problem]:
    problems = []
    place: Place = ("federation_member_list",)
    if members.url is not None and members.path is not None:
        problems.append(Problem(place, "must have either `url` or `path`, not both"))
    if not members.is_used:
        if members.verify_keys or members.authorities:
            problems.append(Problem(place, "needs `url` or `path` of the list"))
        return problems
    if not members.verify_keys and not members.authorities:
        problems.append(
            Problem(place, "needs `verify_keys` or `authorities` to verify the signature")
        )
    for at, key in enumerate(members.verify_keys):
        try:
            parse_public_key("ed25519:list", key)
        except InvalidParam as error:
            problems.append(Problem((*place, "verify_keys", at), f"is not a valid key: {error}"))
    if members.authorities and members.signer is None:
        problems.append(
            Problem(
                place,
                "`authorities` needs `signer`: authorities also issue certificates for others",
            )
        )
    for at, path in enumerate(members.authorities):
        try:
            read_authorities(path)
        except (OSError, ValueError) as error:
            problems.append(
                Problem((*place, "authorities", at), f"has no readable certificates: {error}")
            )
    return problems


def _check_mail(config: Config) -> list[Problem]:
    problems = []
    mail = config.mail
    if mail.email.smtp_host is not None and config.name.public_baseurl is None:
        problems.append(Problem(("email",), "needs `public_baseurl` for links in e-mails"))
    try:
        make_sender(mail.email, config.server_name)
    except ValueError as error:
        problems.append(Problem(("email", "notif_from"), str(error)))
    for at, medium in enumerate(mail.registrations_require_3pid):
        if medium not in ("email", "msisdn"):
            place: Place = ("registrations_require_3pid", at)
            problems.append(Problem(place, f"can only be `email` or `msisdn`, not {medium!r}"))
    if config.registration.registration_approval_emails and mail.email.smtp_host is None:
        problems.append(
            Problem(("registration_approval_emails",), "needs `email.smtp_host` to send e-mails")
        )
    if "email" in mail.registrations_require_3pid and mail.email.smtp_host is None:
        problems.append(
            Problem(
                ("registrations_require_3pid",),
                "needs `email.smtp_host`; otherwise nobody can register",
            )
        )
    for at, allowed in enumerate(mail.allowed_local_3pids or ()):
        try:
            re.compile(allowed.pattern)
        except re.error as error:
            place = ("allowed_local_3pids", at, "pattern")
            problems.append(Problem(place, f"is not a valid regular expression: {error}"))
    return problems


def _check_text_messages(config: Config) -> list[Problem]:
    problems = []
    gateway = config.text_messages.sms_gateway
    place: Place = ("sms_gateway",)
    if gateway.url is not None and config.name.public_baseurl is None:
        problems.append(
            Problem(place, "needs `public_baseurl` for the address that clients send the code to")
        )
    if gateway.format == "form" and any(
        isinstance(value, list | dict) for value in gateway.body.values()
    ):
        problems.append(
            Problem((*place, "body"), "must contain only plain values with `format: form`")
        )
    if gateway.token is not None and any(
        name.lower() == "authorization" for name in gateway.headers
    ):
        problems.append(Problem((*place, "token"), "is already in `headers`"))
    if "msisdn" in config.mail.registrations_require_3pid:
        place = ("registrations_require_3pid",)
        if config.text_messages.disable_msisdn_registration:
            problems.append(
                Problem(place, "has `msisdn`, which `disable_msisdn_registration` forbids")
            )
        if gateway.url is None and not config.upstream.plugins:
            problems.append(
                Problem(place, "needs `sms_gateway.url`; otherwise nobody can register")
            )
    return problems


def _check_consent(config: Config) -> list[Problem]:
    user_consent = config.pages.user_consent
    has_files = any(
        each.path for policy in user_consent.policies.values() for each in policy.documents.values()
    )
    if config.name.public_baseurl is None and (
        has_files or user_consent.block_events_error is not None
    ):
        return [
            Problem(("user_consent",), "needs `public_baseurl` for links to pages of this server")
        ]
    return []


SQLITE_IGNORED = {"check_same_thread", "timeout", "cp_reconnect", "cp_openfun"}
"""Arguments for SQLite in Synapse's files. They have no effect: this server opens its connections
itself."""
