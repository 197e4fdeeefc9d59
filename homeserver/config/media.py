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
        "`main`: the store has every file, and the folder has some of them. `second_copy`: both "
        "have every file. `retired`: files are moved back to the folder, and this section can be "
        "removed when the log reports that every file is there. A background job moves existing "
        "files while the server runs.",
    )
    endpoint_url: str | None = option(
        None, "The URL of the store, if it is not Amazon's.", example="https://s3.example.org"
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
        "auto",
        "The place of the bucket's name in URLs: in the path, or in the host name (`virtual`).",
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
        "The key for `customer`: 32 bytes in base64. If you lose it, the files are lost.",
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
        "The time limit for a response of the store. If nothing arrives for this long, the "
        "request fails with an error, and background work is retried later. A transfer that "
        "makes progress is not interrupted.",
        minimum=1000,
        maximum=120_000,
        example="20s",
        formerly="time_limit",
    )
    redirects: bool = option(
        False,
        "Redirects clients and servers that support it to the store, with a URL that is valid "
        "for five minutes. The store must then protect browsers from hostile files: give it a "
        "host name that serves nothing else.",
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

    time_period: Duration = required("The length of the period before an upload.", minimum=1000)
    max_size: Size = required("The largest number of bytes in this period.", minimum=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaDeletionOptions:
    """Automatic deletion of unreferenced files."""

    enabled: bool = option(
        True,
        "Deletes a file when the last message, profile or account data that refers to it is "
        "redacted, changed or erased. A local file is kept if its uploader never used it in an "
        "unencrypted message or a profile, because it may belong to an encrypted message.",
    )
    grace_period: Duration = option(
        Duration(7 * DAY),
        "How long a file must be without references before it is deleted.",
        minimum=0,
        example="7d",
    )
    record_lifetime: Duration = option(
        Duration(365 * DAY),
        "How long the records of deleted files are kept.",
        minimum=0,
        example="1y",
    )
