"""Options about the server itself: its name, listeners, database, media, logs and keys."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

from federation.protocol.errors import InvalidParam
from federation.protocol.ids import is_server_name
from federation.protocol.policy_server import KEY_ID as POLICY_KEY_ID
from federation.protocol.signing import parse_public_key
from homeserver.config.media import (
    MediaDeletionOptions,
    MediaObjectStoreOptions,
    MediaUploadLimitOptions,
    ThumbnailSizeOptions,
)
from homeserver.config.option import (
    JSON,
    Duration,
    Permissions,
    Secret,
    Size,
    option,
    required,
    section,
)
from homeserver.config.scanning import MediaScanningOptions


def _check_server_name(name: str) -> str | None:
    # 230 and not 255 characters, to leave space for the localpart of user IDs
    if is_server_name(name) and len(name) <= 230:
        return None
    return "must be a host name with an optional :PORT, as in user IDs: no https://, no path"


def _check_optional_url(url: str | None) -> str | None:
    return None if url is None else _check_base_url(url)


def _check_base_url(url: str) -> str | None:
    return (
        None if url.startswith(("https://", "http://")) else "must start with https:// or http://"
    )


def _check_day(day: str | None) -> str | None:
    try:
        fits = day is None or date.fromisoformat(day).isoformat() == day
    except ValueError:
        fits = False
    return None if fits else "must be a date such as 2025-06-01"


def _check_policy_key(key: str) -> str | None:
    try:
        parse_public_key(POLICY_KEY_ID, key)
    except InvalidParam:
        return "must be the 32 bytes of an Ed25519 public key in unpadded base64"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerNameOptions:
    """Server name and addresses."""

    server_name: str = required(
        "The part of user ids after the colon. It can never be changed.",
        example="example.org",
        check=_check_server_name,
    )
    public_baseurl: str | None = option(
        None,
        "The URL under which clients reach this server.",
        example="https://matrix.example.org/",
        check=_check_base_url,
    )
    serve_server_wellknown: bool = option(
        False,
        "Serves `/.well-known/matrix/server`, which sends other servers to port 443 of "
        "`server_name` instead of 8448.",
    )
    extra_well_known_client_content: Mapping[str, JSON] = option(
        {},
        "Additional content of `/.well-known/matrix/client`.",
        example='{"org.example": {"theme": "dark"}}',
    )
    default_identity_server: str | None = option(
        None,
        "An identity server, announced in `/.well-known/matrix/client`. People can register "
        "their addresses there, so that others find them (`/account/3pid/bind`). No other "
        "identity server is used.",
        example="https://identity.example.org",
        check=_check_optional_url,
    )
    web_client_location: str | None = option(
        None,
        "The URL to which `/` redirects browsers, such as your Element Web. Without it, `/` "
        "shows a page about this server.",
        example="https://chat.example.org/",
        check=_check_optional_url,
    )
    admin_contact: str | None = option(
        None,
        "The contact address of the administrators: a user id, an e-mail address (`mailto:…`) or "
        "a page (`https://…`). Published in `/.well-known/matrix/support`.",
        example="mailto:admin@example.org",
    )
    support_page: str | None = option(
        None,
        "A page for people who need help. Published in `/.well-known/matrix/support`.",
        check=_check_base_url,
    )
    policy_server_public_key: str | None = option(
        None,
        "The Ed25519 key (unpadded base64) of a policy server that runs under the name "
        "`server_name`. Published in `/.well-known/matrix/policy_server`, where clients find it "
        "when a room should use that policy server.",
        check=_check_policy_key,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceOptions:
    """The endpoints of a listener."""

    names: tuple[
        Literal[
            "client",
            "federation",
            "media",
            "keys",
            "health",
            "metrics",
            "consent",
            "openid",
            "static",
            "replication",
        ],
        ...,
    ] = required(
        "`client`, `federation` (includes `keys`), `media`, `keys`, `openid`, `health`, "
        "`metrics`. The other names are accepted, but have no effect."
    )
    compress: bool = option(False, "Compresses large responses.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerOptions:
    """A listening socket: a TCP port, with or without TLS, or a Unix socket."""

    port: int | None = option(None, "A TCP port. 0 uses any free port.", minimum=0, maximum=65535)
    path: Path | None = option(None, "A Unix socket, instead of a port.")
    mode: Permissions = option(
        Permissions(0o666), "The permissions of the Unix socket.", minimum=0, maximum=0o777
    )
    bind_addresses: tuple[str, ...] = option(
        ("::", "0.0.0.0"),
        "The addresses to listen on. An address that this machine does not have is an error, "
        "except `::` and `::1`.",
    )
    type: Literal["http", "metrics", "manhole"] = option(
        "http", "`http`, or `metrics` for metrics only. `manhole` has no effect."
    )
    tls: bool = option(
        False, "Uses TLS on this port. Needs `tls_certificate_path` and `tls_private_key_path`."
    )
    x_forwarded: bool = option(
        False,
        "Reads the client's IP address from `X-Forwarded-For`. Required behind a reverse proxy.",
    )
    tag: str | None = option(None, "The name of the listener in the log.")
    request_id_header: str | None = option(
        None, "A header of the proxy that contains a request id."
    )
    resources: tuple[ResourceOptions, ...] = option(
        (ResourceOptions(names=("client", "federation")),),
        "The endpoints that the listener serves.",
        example="[{names: [client, federation]}]",
    )


DEFAULT_LISTENER = ListenerOptions(port=8008, bind_addresses=("::1", "127.0.0.1"))


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkOptions:
    """Listeners."""

    listeners: tuple[ListenerOptions, ...] = option(
        (DEFAULT_LISTENER,),
        "The sockets on which this server listens.",
        example=(
            "\n"
            "  - port: 8008\n"
            '    bind_addresses: ["::1", "127.0.0.1"]\n'
            "    x_forwarded: false  # behind a reverse proxy: true\n"
            "    resources:\n"
            "      - names: [client, federation]\n"
            "        compress: false"
        ),
    )
    tls_certificate_path: Path | None = option(
        None, "The certificate chain in PEM, for listeners with `tls`."
    )
    tls_private_key_path: Path | None = option(None, "The private key of the certificate, in PEM.")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseOptions:
    """The database."""

    name: Literal["sqlite3", "psycopg2"] = option(
        "sqlite3",
        "`sqlite3` for SQLite (one node, no set-up) or `psycopg2` for PostgreSQL 13 or newer.",
    )
    args: Mapping[str, JSON] = option(
        {},
        "For SQLite: `database`, the file. For PostgreSQL: every parameter of libpq (`host`, "
        "`port`, `user`, `password`, `dbname`, …), and `cp_min` and `cp_max`, the bounds of the "
        "connection pool.",
        example=(
            "\n"
            "    user: mahalla\n"
            "    password: …\n"
            "    dbname: mahalla\n"
            "    host: localhost\n"
            "    cp_min: 2\n"
            "    cp_max: 8"
        ),
    )
    password: Secret | None = option(None, "The password for PostgreSQL, if it is not in `args`.")


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaRetentionOptions:
    """How long media are kept."""

    remote_media_lifetime: Duration | None = option(
        None,
        "Copies of other servers' files are deleted when nobody has read them for this long. "
        "`null`: never. They are fetched again on request.",
        minimum=3600 * 1000 * 2,
        example="90d",
    )
    local_media_lifetime: Duration | None = option(
        None,
        "Files of this server's users are deleted when nobody has read them for this long. "
        "`null`: never. They are lost permanently, even if messages refer to them. Protected and "
        "quarantined files are not deleted.",
        minimum=3600 * 1000 * 2,
        example="2y",
    )
    remote_media_max_age: Duration | None = option(
        None,
        "Copies of other servers' files are deleted this long after they were fetched. `null`: "
        "never. They are fetched again on request.",
        minimum=3600 * 1000 * 2,
        example="1y",
    )
    local_media_max_age: Duration | None = option(
        None,
        "Files of this server's users are deleted this long after their upload. They are lost "
        "permanently, even pictures of people and rooms. Protected and quarantined files are not "
        "deleted.",
        minimum=3600 * 1000 * 2,
        example="5y",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageOptions:
    """Database and files."""

    database: DatabaseOptions = section(DatabaseOptions, "The database.")
    media_store_path: Path = option(
        Path("media_store"),
        "The folder for uploaded files. All of it must be on one file system, which is on a disk, "
        "not in memory.",
    )
    media_min_free_disk: Size = option(
        Size(256 * 1024 * 1024),
        "If the disk of `media_store_path` has less free space than this, uploads are refused and "
        "thumbnails are not stored.",
        minimum=0,
        example="256M",
        formerly="media_free_disk_floor",
    )
    media_object_store: MediaObjectStoreOptions = section(
        MediaObjectStoreOptions,
        "An object store for files, such as S3, in addition to the folder or instead of it.",
    )
    max_upload_size: Size = option(
        Size(50 * 1024 * 1024), "The largest file that may be uploaded.", minimum=0, example="50M"
    )
    max_upload_size_by_type: Mapping[str, Size] = option(
        {},
        "The largest file by the media type that the uploader declares, or by a pattern such as "
        "`video/*`. Encrypted files are `application/octet-stream`.",
        example='{"video/*": 200M, "application/octet-stream": 100M}',
    )
    media_upload_limits: tuple[MediaUploadLimitOptions, ...] = option(
        (),
        "Limits on the bytes that one user can upload in a period. All of them apply.",
        example="[{time_period: 1h, max_size: 500M}, {time_period: 4w, max_size: 10G}]",
    )
    media_user_quota: Size | None = option(
        None,
        "The number of bytes of files that one user can have. Deleted files do not count.",
        minimum=0,
        example="20G",
    )
    media_limits_info_uri: str | None = option(
        None,
        "A page about these limits, for people who reach them. Default: `public_baseurl`.",
        check=_check_optional_url,
    )
    max_pending_media_uploads: int = option(
        5,
        "The number of file addresses that one user can reserve without uploading to them.",
        minimum=1,
    )
    unused_expiration_time: Duration = option(
        Duration(24 * 3600 * 1000),
        "The time after which a reserved file address expires if nothing was uploaded to it.",
        minimum=1000,
        example="24h",
    )
    enable_authenticated_media: bool = option(
        True,
        "Requires an access token for downloads of files that are uploaded or fetched from now "
        "on. Files that were uploaded while this was off can still be downloaded by everybody "
        "who knows their address.",
    )
    legacy_media_freeze_date: str | None = option(
        None,
        "A date. Files that were uploaded or fetched on this day (in UTC) or later require an "
        "access token, even if `enable_authenticated_media` was off at the time.",
        example='"2025-06-01"',
        check=_check_day,
    )
    legacy_media_endpoints: bool = option(
        True,
        "Serves the endpoints from before Matrix 1.11 (`/_matrix/media/v3/download` and "
        "`thumbnail`), which need no token. They only serve files from before "
        "`enable_authenticated_media`. Old servers fetch files there too.",
    )
    remove_photo_locations: bool = option(
        False,
        "Removes location data (Exif, XMP, IPTC) from uploaded JPEG, PNG, WebP, HEIC and AVIF "
        "files. The image itself is not changed. Other formats are not changed (see "
        "`refuse_unremovable_locations`), and neither are encrypted files.",
    )
    refuse_unremovable_locations: bool = option(
        False,
        "With `remove_photo_locations`: refuses files that may contain location data which the "
        "server cannot remove: videos (MP4, QuickTime, Matroska, WebM, AVI, ASF), audio in MP4, "
        "TIFF and raw camera files (such as DNG), GIF, PSD, JPEG 2000 and JPEG XL. Encrypted "
        "files cannot be inspected, and are accepted.",
        formerly="refuse_other_locations",
    )
    max_image_pixels: Size = option(
        Size(32 * 1024 * 1024),
        "The largest image, in pixels, for which thumbnails are created.",
        minimum=1,
        example="32M",
    )
    thumbnail_sizes: tuple[ThumbnailSizeOptions, ...] = option(
        (),
        "The only sizes of thumbnails. A request gets the smallest size with the requested "
        "method that is large enough, or else the largest one. If the list is empty, every size "
        "is served, rounded up to one of seventeen steps.",
        example="[{width: 96, height: 96, method: crop}, {width: 800, height: 600, method: scale}]",
    )
    dynamic_thumbnails: bool = option(
        False, "Creates thumbnails in other sizes too, even if `thumbnail_sizes` is set."
    )
    thumbnails_at_upload: bool = option(
        False,
        "Creates thumbnails when a picture, video or document is uploaded, not at the first "
        "request. The sizes are those of `thumbnail_sizes`, or the five of the specification.",
    )
    external_thumbnailers: bool = option(
        True,
        "Creates thumbnails of videos with ffmpeg and of PDF documents with pdftoppm, if these "
        "are installed. These programs process untrusted files, with limits on time and memory, "
        "and without network.",
        formerly="thumbnails_by_programs",
    )
    media_retention: MediaRetentionOptions = section(
        MediaRetentionOptions, "Deletion of files by age."
    )
    media_deletion: MediaDeletionOptions = section(
        MediaDeletionOptions, "Deletion of files to which nothing refers any more."
    )
    media_scanning: MediaScanningOptions = section(
        MediaScanningOptions,
        "Scanners that check files before anybody can download them; see "
        "docs/operators/scanning.md. Off unless a scanner is configured.",
    )
    prevent_media_downloads_from: tuple[str, ...] = option(
        (),
        "Servers whose files are never delivered, including copies that are already stored.",
        example='["evil.example"]',
    )
    remote_media_download_per_second: Size = option(
        Size(87 * 1024),
        "The average number of bytes per second that are fetched from other servers for one "
        "client IP address.",
        minimum=1,
        example="87K",
    )
    remote_media_download_burst_count: Size = option(
        Size(500 * 1024 * 1024),
        "The number of bytes that can be fetched in one burst, for one client IP address.",
        minimum=1,
        example="500M",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions:
    """Logging."""

    level: Literal["debug", "info", "warn", "error"] = option(
        "info", "The lowest level that is logged."
    )
    format: Literal["text", "json"] = option("text", "`text`, or one JSON object per line.")
    file: Path | None = option(None, "The log file. `null`: the standard error output.")


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitoringOptions:
    """Logs and metrics."""

    log: LogOptions = section(LogOptions, "The log.")
    enable_metrics: bool = option(
        False, "Serves `/metrics` on listeners with the resource `metrics`."
    )
    slow_request_threshold: Duration = option(
        Duration(1000),
        "Requests that take longer are logged as slow. Waiting time in /sync does not count.",
    )
    slow_query_threshold: Duration = option(
        Duration(200), "Database transactions that take longer are logged as slow."
    )
    pid_file: Path | None = option(None, "A file that holds the process id while the server runs.")


@dataclass(frozen=True, slots=True, kw_only=True)
class OldKeyOptions:
    """A retired signing key of this server."""

    key: str = required("The public key in unpadded base64.")
    expired_ts: int = required(
        "The time when the key was retired, in milliseconds since 1970.", minimum=0
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyOptions:
    """Signing keys."""

    signing_key_path: Path | None = option(
        None,
        "The file with the signing key. Default: SERVER_NAME.signing.key next to the configuration "
        "file.",
    )
    key_refresh_interval: Duration = option(
        Duration(24 * 3600 * 1000),
        "How long other servers may cache the published keys. This server signs them again after "
        "half of this time. Other servers cache them for a week at most.",
        minimum=3600 * 1000,
        maximum=365 * 24 * 3600 * 1000,
        example="1d",
    )
    old_signing_keys: Mapping[str, OldKeyOptions] = option(
        {},
        "Retired keys, so that other servers can still verify their signatures.",
        example=(
            '{"ed25519:old": {key: "Noi6WqcDj0QmPxCNQqgezwTlBKrfqehY1u2FyWP9uYw", expired_ts: '
            "1576767829750}}"
        ),
    )
