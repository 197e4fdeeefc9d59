"""Options of what becomes of files: when they go, and how many somebody may have."""

from dataclasses import dataclass

from homeserver.config.option import Duration, option

DAY = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaDeletion:
    """When files go that nobody refers to any more."""

    enabled: bool = option(
        True,
        "Whether a file goes when the last message, profile or account data that refers to it is redacted, changed or "
        "erased. A file to which its uploader never was seen to refer stays: it may belong to an encrypted message.",
    )
    grace_period: Duration = option(
        Duration(7 * DAY), "For how long nobody must have referred to it.", minimum=0, example="7d"
    )
    record_lifetime: Duration = option(
        Duration(365 * DAY),
        "How long it is remembered which files were deleted, when and why.",
        minimum=0,
        example="1y",
    )
