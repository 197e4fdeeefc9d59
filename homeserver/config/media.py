"""Options about media: the object store, thumbnails, quotas and deletion."""

import binascii
from base64 import b64decode
from dataclasses import dataclass
from typing import Literal

from homeserver.config.option import Duration, Secret, Size, option, required

CUSTOMER_KEY_BYTES = 32
DAY = 24 * 3600 * 1000


def _check_key(key: Secret | None) -> str | None:
    try:
        fits = key is None or len(b64decode(key, validate=True)) == CUSTOMER_KEY_BYTES
    except binascii.Error:
        fits = False
    return None if fits else f"must be {CUSTOMER_KEY_BYTES} bytes in base64"


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaObjectStoreOptions:
    """An S3-compatible object store for media."""

    bucket: str | None = option(
        None, "The bucket. It must exist. Without it, no object store is used."
    )
    role: Literal["main", "second_copy", "retired"] = option(
        "main",
        "`main`: the store has every file, and the folder a part of them. `second_copy`: both "
        "have every file. `retired`: files move back to the folder; remove this section when the "
        "log says that the store is empty. A background job moves existing files while the server "
        "runs.",
    )
    endpoint_url: str | None = option(
        None, "The address of the store, if it is not Amazon's.", example="https://s3.example.org"
    )
    region_name: str | None = option(None, "The region.", example="eu-central-1")
    access_key_id: Secret | None = option(
        None,
        "The id of the access key. Without it, boto3 looks for one in the environment or at the "
        "cloud provider.",
    )
    secret_access_key: Secret | None = option(None, "The secret access key.")
    prefix: str = option("", "A prefix of all object names.", example="mahalla/")
    addressing_style: Literal["auto", "path", "virtual"] = option(
        "auto", "Whether the bucket's name is part of the path or of the host name."
    )
    encryption: Literal["none", "AES256", "aws:kms", "customer"] = option(
        "none",
        "Encryption at rest: with a key of the store, with a key of its key service, or with "
        "`customer_key`, which the store does not keep.",
    )
    kms_key_id: str | None = option(
        None, "The key for `aws:kms`, if it is not the bucket's default."
    )
    customer_key: Secret | None = option(
        None,
        "The key for `customer`: 32 bytes in base64. Without it the files are lost.",
        check=_check_key,
    )
    storage_class: str | None = option(
        None, "The storage class of new objects.", example="STANDARD_IA"
    )
    cache_size: Size = option(
        Size(10 * 1024**3),
        "With the role `main`, the approximate size of the folder.",
        minimum=0,
        example="10G",
    )
    timeout: Duration = option(
        Duration(20_000),
        "How long the store may send nothing. After that, requests get an error that says that "
        "files cannot be reached, and background work is retried later. A transfer that makes "
        "progress is not interrupted.",
        minimum=1000,
        maximum=120_000,
        example="20s",
        formerly="time_limit",
    )
    redirects: bool = option(
        False,
        "Sends clients and servers that allow it directly to the store, with an address that is "
        "valid for five minutes. Protection of browsers from hostile files is then the store's "
        "task: give it a host name of its own.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ThumbnailSizeOptions:
    """A thumbnail size."""

    width: int = required("The width in pixels.", minimum=1, maximum=4096)
    height: int = required("The height in pixels.", minimum=1, maximum=4096)
    method: Literal["crop", "scale"] = required(
        "`crop`: cut to these proportions. `scale`: keep the proportions."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaUploadLimitOptions:
    """The upload quota of one user in a period of time."""

    time_period: Duration = required("The span of time, back from now.", minimum=1000)
    max_size: Size = required("The number of bytes in it.", minimum=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaDeletionOptions:
    """Automatic deletion of unreferenced files."""

    enabled: bool = option(
        True,
        "Deletes a file when the last message, profile or account data that refers to it is "
        "redacted, changed or erased. A file that was never seen in an unencrypted reference of "
        "its uploader stays: it may belong to an encrypted message.",
    )
    grace_period: Duration = option(
        Duration(7 * DAY),
        "How long a file must be without references before it is deleted.",
        minimum=0,
        example="7d",
    )
    record_lifetime: Duration = option(
        Duration(365 * DAY),
        "How long the record of deleted files is kept.",
        minimum=0,
        example="1y",
    )
