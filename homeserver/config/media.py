"""Options about files: where they are kept besides the folder, and what becomes of them."""

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
class MediaObjectStore:
    """A store of objects for files, such as S3: Amazon's, or another that speaks its language."""

    bucket: str | None = option(
        None, "The bucket, which must be there; without it there is no such store."
    )
    role: Literal["main", "second_copy", "retired"] = option(
        "main",
        "`main`: it has every file, and the folder a part of them. `second_copy`: both have every file. `retired`: what it has goes "
        "back to the folder; when the log says that it is empty, this section may go. A job moves the files that are there "
        "already, while the server runs.",
    )
    endpoint_url: str | None = option(
        None, "Where it is, if it is not Amazon's.", example="https://s3.example.org"
    )
    region_name: str | None = option(None, "The region.", example="eu-central-1")
    access_key_id: Secret | None = option(
        None,
        "The id of the key; without it boto3 looks for one, in the environment or at the machine's provider.",
    )
    secret_access_key: Secret | None = option(None, "The key.")
    prefix: str = option("", "What the names of all objects begin with.", example="mahalla/")
    addressing_style: Literal["auto", "path", "virtual"] = option(
        "auto", "Whether the bucket's name is a part of the path or of the host's name."
    )
    encryption: Literal["none", "AES256", "aws:kms", "customer"] = option(
        "none",
        "How the store encrypts what it keeps: with a key of its own, with one of its key service, or with the one below, which "
        "it does not keep.",
    )
    kms_key_id: str | None = option(None, "The key for `aws:kms`, where it is not the bucket's.")
    customer_key: Secret | None = option(
        None,
        "The key for `customer`: 32 bytes in base64. Without it the files are lost.",
        check=_check_key,
    )
    storage_class: str | None = option(
        None, "The class of storage of what is written.", example="STANDARD_IA"
    )
    cache_size: Size = option(
        Size(10 * 1024**3),
        "In the role `main`, how large the folder may be, about.",
        minimum=0,
        example="10G",
    )
    time_limit: Duration = option(
        Duration(20_000),
        "For how long it may be silent: who waits for it so long is told that this server cannot reach its files, and what is to be "
        "done unasked is done later. What moves is waited for.",
        minimum=1000,
        maximum=120_000,
        example="20s",
    )
    redirects: bool = option(
        False,
        "Whether clients and servers that allow it are sent to the store, with an address that is good for five minutes. Then what "
        "protects browsers from hostile files is the store's business; give it a host name of its own.",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ThumbnailSize:
    """A size of thumbnails."""

    width: int = required("The width, in pixels.", minimum=1, maximum=4096)
    height: int = required("The height.", minimum=1, maximum=4096)
    method: Literal["crop", "scale"] = required(
        "`crop`: cut to these proportions; `scale`: with its own."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaUploadLimit:
    """How much one user may upload in a span of time."""

    time_period: Duration = required("The span of time, back from now.", minimum=1000)
    max_size: Size = required("How many bytes in it.", minimum=0)


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
