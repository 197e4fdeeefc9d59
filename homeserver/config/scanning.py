"""Options about scanning media for malware."""

from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

from homeserver.config.option import Duration, Size, option

DAY: Final = 24 * 3600 * 1000


class InvalidClamdAddress(ValueError):
    """The address is neither a Unix socket nor host and port."""


def split_clamd(address: str) -> tuple[str | None, str, int]:
    """Split an address into the path of a Unix socket, or host and port. Raises
    InvalidClamdAddress."""
    kind, _, rest = address.partition(":")
    if kind == "unix" and rest.startswith("/"):
        return rest, "", 0
    host, colon, port = rest.rpartition(":")
    if kind != "tcp" or not host or not colon or not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidClamdAddress(address)
    return None, host.strip("[]"), int(port)


def _check_clamd(address: str | None) -> str | None:
    try:
        split_clamd(address or "unix:/none")
    except InvalidClamdAddress:
        return "must be unix:/PATH or tcp:HOST:PORT"
    return None


def _check_icap(url: str | None) -> str | None:
    try:
        parts = urlsplit(url or "icap://none")
        fits = parts.scheme == "icap" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    text = url or ""
    return (
        None
        if fits and text.isascii() and text.isprintable() and " " not in text
        else "must be icap://HOST:PORT/SERVICE"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaScanningOptions:
    """Media scanners; see docs/operators/scanning.md. Without any of the first three nothing is
    scanned, unless a plug-in does it."""

    clamd: str | None = option(
        None,
        "The address of ClamAV's daemon: a Unix socket, or host and port.",
        example="unix:/run/clamav/clamd.ctl",
        check=_check_clamd,
    )
    icap: str | None = option(
        None,
        "The URL of a scanner that supports ICAP.",
        example="icap://127.0.0.1:1344/avscan",
        check=_check_icap,
    )
    forbidden_types: tuple[str, ...] = option(
        (),
        "Types that are refused. The server recognizes the type by the first bytes of the file, "
        "and ignores the declared type.",
        example="[application/x-msdownload, application/x-executable]",
    )
    icap_method: Literal["RESPMOD", "REQMOD"] = option(
        "RESPMOD", "The ICAP method: files are sent to the scanner as responses or as requests."
    )
    files: tuple[Literal["local", "remote", "previews"], ...] = option(
        ("local", "remote", "previews"),
        "The files that are scanned: uploads of this server's users, copies of other servers' "
        "files, pictures of link previews.",
    )
    max_size: Size = option(
        Size(100 * 1024 * 1024),
        "The largest file that is scanned. The scanner must accept it; for clamd see "
        "`StreamMaxLength` and `MaxFileSize`.",
        minimum=1,
        example="100M",
    )
    oversized_files: Literal["refuse", "pass"] = option(
        "refuse",
        "Files larger than `max_size` are refused, or delivered without a scan (`pass`).",
        formerly="larger_files",
    )
    unreachable: Literal["hold", "pass"] = option(
        "hold",
        "While a scanner cannot be reached, files are held back, or delivered and scanned later "
        "(`pass`).",
    )
    timeout: Duration = option(
        Duration(60_000),
        "How long the scan of one file may take.",
        minimum=1000,
        formerly="time_limit",
    )
    concurrency: int = option(
        4, "How many files are scanned at the same time.", minimum=1, maximum=64
    )
    encrypted_concurrency: int = option(
        2,
        "How many encrypted files are scanned at the same time, in addition, for clients that "
        "send their keys.",
        minimum=1,
        maximum=64,
    )
    upload_wait: Duration = option(
        Duration(5000),
        "How long the response to an upload waits for the scan, so that the sender of a harmful "
        "file gets an error. After that time the upload succeeds, but nobody can download the "
        "file before it is scanned.",
        minimum=0,
        maximum=60_000,
    )
    rescan_on_new_signatures: bool = option(
        True, "Scans files again, in the background, when the scanners have new signatures."
    )
    rescan_interval: Duration = option(
        Duration(DAY),
        "The shortest time between two rescans for new signatures.",
        minimum=60_000,
        example="1d",
    )
    rescan_newer_than: Duration | None = option(
        Duration(30 * DAY),
        "Rescans only files that were uploaded or fetched within this time. `null`: all.",
        minimum=60_000,
        example="30d",
    )
