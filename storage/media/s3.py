"""An object store with the S3 protocol: Amazon's, or another one at `endpoint_url`.

boto3 takes 50 MB of memory and one to two seconds to load. So this module is imported only where
such a store is configured (`homeserver.wiring.media_stores`).
"""

import threading
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import md5
from pathlib import Path
from typing import Any, Final

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import S3Transfer, TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from storage.media.object_store import ObjectStoreFailed, ObjectStream, S3Config, UploadProgress

PART_BYTES: Final = 16 << 20
"""Longer files are sent in sequential parts, which the store joins in the end."""
JOINED_PER_SECOND: Final = 16 << 20
"""Bytes per second. While the store joins parts, its permitted silence grows by the time that this
makes."""
ATTEMPTS: Final = 2
"""A pooled connection may be closed by now, so the first attempt may fail."""
CONNECT_SECONDS: Final = 5.0
URL_SECONDS: Final = 300
"""Seconds that a presigned URL is valid."""
_MISSING_CODES: Final = frozenset({"404", "NoSuchKey", "NotFound", "NoSuchUpload"})


class S3ObjectStore:
    """The objects of a bucket. Raises ObjectStoreFailed if the configuration is unusable."""

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
        self._config = config
        self._session = boto3.Session()
        self._making = threading.Lock()
        self._client = self._connect(config.max_silence / ATTEMPTS)

    def _connect(self, read_seconds: float) -> Any:
        """Return a client of the store with this read timeout."""
        config = self._config
        with _failing(), self._making:  # a session makes one at a time
            return self._session.client(
                "s3",
                endpoint_url=config.endpoint_url,
                region_name=config.region_name,
                aws_access_key_id=config.access_key_id,
                aws_secret_access_key=config.secret_access_key,
                config=Config(
                    connect_timeout=min(CONNECT_SECONDS, config.max_silence / ATTEMPTS),
                    read_timeout=read_seconds,
                    max_pool_connections=config.connections,
                    retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                    s3={"addressing_style": config.addressing_style},
                    signature_version="s3v4",
                    # Not every store knows the newer checksums, and contents are verified by their
                    # hash
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )

    def put(self, name: str, path: Path, progress: UploadProgress) -> None:
        joining = _JoiningClient(
            client=self._client,
            join=lambda further: self._join(path.stat().st_size, progress, further),
        )
        with _failing(), S3Transfer(joining, self._transfer) as transfer:
            transfer.upload_file(
                str(path),
                self._bucket,
                name,
                callback=progress.record,
                extra_args={**self._further, **self._customer},
            )

    def _join(self, size: int, progress: UploadProgress, further: Mapping[str, Any]) -> Any:
        """Run the last step of a multipart upload."""
        seconds = self._config.max_silence + size / JOINED_PER_SECOND
        progress.expect_silence(seconds)
        client = self._connect(seconds)
        try:
            return client.complete_multipart_upload(**further)
        finally:
            client.close()

    def open(self, name: str, offset: int) -> ObjectStream | None:
        further = {"Range": f"bytes={offset}-"} if offset else {}
        try:
            with _failing():
                answer = self._client.get_object(
                    Bucket=self._bucket, Key=name, **further, **self._customer
                )
        except _Missing:
            return None
        return _Stream(answer["Body"])

    def remove(self, name: str, *, is_complete: bool) -> None:
        with _failing():
            if not is_complete:
                self._abort(name)
            self._client.delete_object(Bucket=self._bucket, Key=name)

    def get_url(self, name: str, type: str, disposition: str) -> str | None:
        if self._customer:
            return None  # the requester would need the key
        headers = {"ResponseContentType": type, "ResponseContentDisposition": disposition}
        with _failing():
            return str(
                self._client.generate_presigned_url(
                    "get_object",
                    {"Bucket": self._bucket, "Key": name, **headers},
                    ExpiresIn=URL_SECONDS,
                )
            )

    def _abort(self, name: str) -> None:
        """Delete the parts of an unfinished upload. No other object has its name."""
        answer = self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=name)
        for upload in answer.get("Uploads", ()):
            try:
                with _failing():
                    self._client.abort_multipart_upload(
                        Bucket=self._bucket, Key=name, UploadId=upload["UploadId"]
                    )
            except _Missing:
                continue


class _JoiningClient:
    """The client that boto3's transfers use. It joins the parts of an upload in another way."""

    def __init__(self, *, client: Any, join: Callable[[Mapping[str, Any]], Any]) -> None:
        self._client = client
        self._join = join

    def complete_multipart_upload(self, **further: Any) -> Any:
        return self._join(further)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


class _Stream:
    def __init__(self, body: Any) -> None:
        self._body = body

    def read(self, size: int = -1, /) -> bytes:
        with _failing():
            return bytes(self._body.read(None if size < 0 else size))

    def close(self) -> None:
        self._body.close()


class _Missing(ObjectStoreFailed):
    pass


@contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        raise (_Missing if code in _MISSING_CODES else ObjectStoreFailed)(str(error)) from error
    except (BotoCoreError, Boto3Error, ValueError) as error:
        raise ObjectStoreFailed(str(error)) from error


def _further(config: S3Config) -> Mapping[str, str]:
    """Return the arguments of every write."""
    further = {} if config.storage_class is None else {"StorageClass": config.storage_class}
    if config.encryption in ("AES256", "aws:kms"):
        further["ServerSideEncryption"] = config.encryption
    if config.encryption == "aws:kms" and config.kms_key_id is not None:
        further["SSEKMSKeyId"] = config.kms_key_id
    return further


def _customer_key(config: S3Config) -> Mapping[str, str]:
    """Return the arguments of every access, if the store does not keep the key."""
    if config.encryption != "customer" or config.customer_key is None:
        return {}
    key = config.customer_key
    return {
        "SSECustomerAlgorithm": "AES256",
        "SSECustomerKey": b64encode(key).decode(),
        "SSECustomerKeyMD5": b64encode(md5(key, usedforsecurity=False).digest()).decode(),
    }
