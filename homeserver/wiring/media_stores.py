"""Wires the storage of media: the local folder, and an object store if one is configured."""

from base64 import b64decode
from collections.abc import Sequence
from importlib import import_module
from typing import cast

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from homeserver.cluster.jobs import Job
from homeserver.config.media import MediaObjectStoreOptions
from storage.engine.database import Database
from storage.engine.executors import Executor
from storage.media.contents import LocalContents, MediaContents
from storage.media.files import MediaFiles
from storage.media.media import MediaStore
from storage.media.object_store import ObjectStore, S3Config
from storage.media.object_store_calls import ObjectCallRunner
from storage.media.rebalancing import FolderTrimmer, MediaRebalancer
from storage.media.shared_contents import SharedContents

OBJECT_THREADS = 8
"""Threads that read from the object store; as many write to it."""


class MediaStorage(msgspec.Struct, frozen=True):
    """The storage of media, and its background jobs."""

    contents: MediaContents
    jobs: Sequence[Job]


def make_media_storage(
    object_store: MediaObjectStoreOptions,
    clock: IReactorTime,
    database: Database,
    files: MediaFiles,
    reading: Executor,
    writing: Executor,
) -> MediaStorage:
    """Return the storage: the folder, and the object store if one is configured. The executors
    `reading` and `writing` call the object store. Raises ObjectStoreFailed."""
    if object_store.bucket is None:
        return MediaStorage(
            LocalContents(database=database, files=files), (_sweep_job(database, files),)
        )
    timeout = object_store.timeout / 1000
    contents = SharedContents(
        database=database,
        files=files,
        objects=open_s3(read_s3_config(object_store)),
        reading=ObjectCallRunner(executor=reading, clock=clock, max_silence=timeout),
        writing=ObjectCallRunner(
            executor=writing, clock=clock, max_silence=timeout, max_long=OBJECT_THREADS // 2
        ),
        clock=clock,
        role=object_store.role,
        prefix=object_store.prefix,
        redirect=object_store.redirects,
    )
    trimming = FolderTrimmer(
        database=database,
        files=files,
        max_bytes=object_store.cache_size if object_store.role == "main" else None,
    )
    return MediaStorage(
        contents,
        (
            _sweep_job(database, files),
            Job(
                "rebalance_media",
                MediaRebalancer(database=database, contents=contents, clock=clock).rebalance,
                60.0,
            ),
            Job("delete_unused_media_objects", contents.delete_unused_objects, 60.0),
            Job("trim_media_folder", trimming.trim, 600.0),
        ),
    )


def read_s3_config(object_store: MediaObjectStoreOptions) -> S3Config:
    """Return the configuration of the object store client."""
    assert object_store.bucket is not None
    return S3Config(
        bucket=object_store.bucket,
        endpoint_url=object_store.endpoint_url,
        region_name=object_store.region_name,
        access_key_id=object_store.access_key_id,
        secret_access_key=object_store.secret_access_key,
        addressing_style=object_store.addressing_style,
        encryption=object_store.encryption,
        kms_key_id=object_store.kms_key_id,
        customer_key=None
        if object_store.customer_key is None
        else b64decode(object_store.customer_key),
        storage_class=object_store.storage_class,
        connections=2 * OBJECT_THREADS,
        max_silence=object_store.timeout / 1000,
    )


def open_s3(config: S3Config) -> ObjectStore:
    """Return the client of the object store. Raises ObjectStoreFailed.

    Its module is imported here and not above: it takes 50 MB and two seconds, and most servers do
    not need it.
    """
    return cast(ObjectStore, import_module("storage.media.s3").S3ObjectStore(config))


def _sweep_job(database: Database, files: MediaFiles) -> Job:
    log = Logger(namespace="homeserver.media")
    rows = MediaStore(database)

    async def sweep(_limit: int) -> int:
        count = await files.sweep(rows.get_used_hashes)
        if count:
            log.info("deleted {count} unfinished uploads", count=count)
        return 0

    return Job("sweep_media_folder", sweep, 3600.0)
