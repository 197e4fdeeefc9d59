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
        "A scanner that speaks ICAP.",
        example="icap://127.0.0.1:1344/avscan",
        check=_check_icap,
    )
    forbidden_types: tuple[str, ...] = option(
        (),
        "Types that are refused, recognised by how the file begins and not by what its sender "
        "declares.",
        example="[application/x-msdownload, application/x-executable]",
    )
    icap_method: Literal["RESPMOD", "REQMOD"] = option(
        "RESPMOD", "Whether files are shown to it as responses or as requests."
    )
    files: tuple[Literal["local", "remote", "previews"], ...] = option(
        ("local", "remote", "previews"),
        "Which files are scanned: uploads of this server's users, copies of other servers' files, "
        "pictures of previews.",
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
        "Whether files larger than `max_size` are refused, or given out without a scan.",
        formerly="larger_files",
    )
    unreachable: Literal["hold", "pass"] = option(
        "hold",
        "While a scanner cannot be reached: hold files back, or give them out and scan them later.",
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
        "How many encrypted files are scanned at the same time, in addition, for clients that show "
        "their keys.",
        minimum=1,
        maximum=64,
    )
    upload_wait: Duration = option(
        Duration(5000),
        "How long an upload waits for its scan, so that the sender of a harmful file gets the "
        "error at once. After that the upload is answered, and nobody gets the file before it is "
        "scanned.",
        minimum=0,
        maximum=60_000,
    )
    rescan_on_new_signatures: bool = option(
        True, "Scans files again, in the background, when the scanners have new signatures."
    )
    rescan_interval: Duration = option(
        Duration(DAY), "The shortest time between two such scans.", minimum=60_000, example="1d"
    )
    rescan_newer_than: Duration | None = option(
        Duration(30 * DAY),
        "Only files that came within this time. `null`: all.",
        minimum=60_000,
        example="30d",
    )
