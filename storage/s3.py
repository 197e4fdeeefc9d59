"""An object store that speaks S3: Amazon's, or whoever's at `endpoint_url`.

boto3 takes 50 MB and a second to load, so this module is imported only where such a store is configured
(`homeserver.assembly.media_stores`).
"""

from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import md5
from pathlib import Path
from typing import Any, Final

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from storage.object_store import ObjectStoreFailed, ObjectStream, S3Config

PART_BYTES: Final = 16 << 20
"""What is longer is sent in parts, one after the other."""
ATTEMPTS: Final = 2
"""A connection that was kept may be closed by now, so that the first is in vain."""
CONNECT_SECONDS: Final = 5.0
ADDRESS_SECONDS: Final = 300
"""For so long an address is good that is given out."""
_NOT_THERE: Final = frozenset({"404", "NoSuchKey", "NotFound", "NoSuchUpload"})


class S3:
    """A bucket. Raises ObjectStoreFailed where its configuration cannot be used."""

    def __init__(self, config: S3Config) -> None:
        self._bucket = config.bucket
        self._further = _further(config)
        self._customer = _customer_key(config)
        self._transfer = TransferConfig(
            multipart_threshold=PART_BYTES,
            multipart_chunksize=PART_BYTES,
            use_threads=False,
            preferred_transfer_client="classic",
        )
        with _failing():
            self._client: Any = boto3.client(
                "s3",
                endpoint_url=config.endpoint_url,
                region_name=config.region_name,
                aws_access_key_id=config.access_key_id,
                aws_secret_access_key=config.secret_access_key,
                config=Config(
                    connect_timeout=min(CONNECT_SECONDS, config.patience / ATTEMPTS),
                    read_timeout=config.patience / ATTEMPTS,
                    max_pool_connections=config.connections,
                    retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                    s3={"addressing_style": config.addressing_style},
                    signature_version="s3v4",
                    # Not every store knows the newer checksums, and what comes back is checked by its hash
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )

    def put(self, name: str, path: Path, note: Callable[[int], None]) -> None:
        with _failing():
            self._client.upload_file(
                str(path),
                self._bucket,
                name,
                ExtraArgs={**self._further, **self._customer},
                Callback=note,
                Config=self._transfer,
            )

    def open(self, name: str, offset: int) -> ObjectStream | None:
        further = {"Range": f"bytes={offset}-"} if offset else {}
        try:
            with _failing():
                answer = self._client.get_object(Bucket=self._bucket, Key=name, **further, **self._customer)
        except _NotThere:
            return None
        return _Stream(answer["Body"])

    def remove(self, name: str, *, is_whole: bool) -> None:
        with _failing():
            if not is_whole:
                self._abort(name)
            self._client.delete_object(Bucket=self._bucket, Key=name)

    def address(self, name: str, type: str, disposition: str) -> str | None:
        if self._customer:
            return None  # who asks there would have to know the key
        wanted = {"ResponseContentType": type, "ResponseContentDisposition": disposition}
        with _failing():
            return str(
                self._client.generate_presigned_url(
                    "get_object", {"Bucket": self._bucket, "Key": name, **wanted}, ExpiresIn=ADDRESS_SECONDS
                )
            )

    def _abort(self, name: str) -> None:
        """Take away the parts of what was never finished. Its name is nobody else's."""
        answer = self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=name)
        for upload in answer.get("Uploads", ()):
            try:
                with _failing():
                    self._client.abort_multipart_upload(Bucket=self._bucket, Key=name, UploadId=upload["UploadId"])
            except _NotThere:
                continue


class _Stream:
    def __init__(self, body: Any) -> None:
        self._body = body

    def read(self, size: int = -1, /) -> bytes:
        with _failing():
            return bytes(self._body.read(None if size < 0 else size))

    def close(self) -> None:
        self._body.close()


class _NotThere(ObjectStoreFailed):
    pass


@contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        raise (_NotThere if code in _NOT_THERE else ObjectStoreFailed)(str(error)) from error
    except (BotoCoreError, Boto3Error, ValueError) as error:
        raise ObjectStoreFailed(str(error)) from error


def _further(config: S3Config) -> Mapping[str, str]:
    """What is said of every object that is written."""
    further = {} if config.storage_class is None else {"StorageClass": config.storage_class}
    if config.encryption in ("AES256", "aws:kms"):
        further["ServerSideEncryption"] = config.encryption
    if config.encryption == "aws:kms" and config.kms_key_id is not None:
        further["SSEKMSKeyId"] = config.kms_key_id
    return further


def _customer_key(config: S3Config) -> Mapping[str, str]:
    """What is said of an object whenever it is touched, where the store does not keep the key."""
    if config.encryption != "customer" or config.customer_key is None:
        return {}
    key = config.customer_key
    return {
        "SSECustomerAlgorithm": "AES256",
        "SSECustomerKey": b64encode(key).decode(),
        "SSECustomerKeyMD5": b64encode(md5(key, usedforsecurity=False).digest()).decode(),
    }
