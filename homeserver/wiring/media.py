"""Wires the media services."""

from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred
from twisted.logger import Logger

from federation.peers.token_buckets import Rate
from federation.remote.media import Follow, MediaClient
from homeserver.cluster.jobs import Job
from homeserver.config.server import StorageOptions
from homeserver.services.media.delivery import MediaDelivery
from homeserver.services.media.eager_thumbnails import SPECIFIED_SIZES, EagerThumbnails
from homeserver.services.media.federation_responses import media_responses
from homeserver.services.media.freeze import MediaFreeze
from homeserver.services.media.image_workers import ImageWorkers
from homeserver.services.media.location_removal import LocationRemover
from homeserver.services.media.quotas import UploadQuota, UploadQuotas
from homeserver.services.media.remote_copies import RemoteCopies
from homeserver.services.media.remote_downloads import RemoteDownloads
from homeserver.services.media.repository import MediaRepository
from homeserver.services.media.scan_proxy import ContentScannerAPI
from homeserver.services.media.thumbnails import Thumbnails, ThumbnailSize
from homeserver.services.plugins.hooks import Plugins
from homeserver.services.previews.fetching import PreviewClient
from homeserver.services.scanning.encrypted_files import EncryptedBodyReader
from homeserver.services.tokens.secret_tokens import RandomBytes, SecretGenerator
from homeserver.wiring.federation_peers import FederationPeerParts
from homeserver.wiring.foundation import Foundation
from homeserver.wiring.media_maintenance import MediaMaintenanceParts
from homeserver.wiring.media_stores import OBJECT_THREADS, make_media_storage
from homeserver.wiring.previews import PreviewParts
from homeserver.wiring.scanning import ScanningParts, scan_threads
from storage.engine.executors import Executor, ThreadExecutor
from storage.media.files import MediaFiles
from storage.media.media import MediaStore
from storage.media.quarantine import QuarantineStore
from storage.media.remote_media import RemoteMediaStore

FILE_THREADS = 4
IMAGE_PROCESSES = 2
PHOTO_PROCESSES = 2
PAGE_PROCESSES = 2


class MediaThreads(msgspec.Struct, frozen=True):
    """Thread pools, one for each kind of blocking work, so that none delays another: reading and
    writing files, waiting for thumbnail processes, for photo location processes, for page readers,
    for the object store in each direction, and for scanners."""

    files: Executor
    images: Executor
    photos: Executor
    pages: Executor
    object_reads: Executor
    object_writes: Executor
    scans: Executor


def start_media_threads(reactor: ReactorBase, storage: StorageOptions) -> MediaThreads:
    """Start the threads of a server."""
    object_threads = OBJECT_THREADS if storage.media_object_store.bucket is not None else 1
    return MediaThreads(
        files=ThreadExecutor(
            reactor=reactor, name="files", threads=FILE_THREADS, close_timeout=2.0
        ),
        images=ThreadExecutor(
            reactor=reactor, name="images", threads=IMAGE_PROCESSES, close_timeout=1.0
        ),
        photos=ThreadExecutor(
            reactor=reactor, name="photos", threads=PHOTO_PROCESSES, close_timeout=1.0
        ),
        pages=ThreadExecutor(
            reactor=reactor, name="pages", threads=PAGE_PROCESSES, close_timeout=1.0
        ),
        object_reads=ThreadExecutor(
            reactor=reactor, name="objects_out", threads=object_threads, close_timeout=2.0
        ),
        object_writes=ThreadExecutor(
            reactor=reactor, name="objects_in", threads=object_threads, close_timeout=2.0
        ),
        scans=ThreadExecutor(
            reactor=reactor,
            name="scans",
            threads=scan_threads(storage.media_scanning),
            close_timeout=1.0,
        ),
    )


def read_media_freeze(storage: StorageOptions) -> MediaFreeze:
    """Return the freeze: which files require authentication."""
    day = storage.legacy_media_freeze_date
    since = (
        None
        if day is None
        else int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp() * 1000)
    )
    return MediaFreeze(storage.enable_authenticated_media, since)


def read_allowed_sizes(storage: StorageOptions) -> Sequence[ThumbnailSize]:
    """Return the only sizes of thumbnails; empty if any size may be made."""
    return () if storage.dynamic_thumbnails else read_thumbnail_sizes(storage)


def read_thumbnail_sizes(storage: StorageOptions) -> Sequence[ThumbnailSize]:
    """Return the configured sizes of thumbnails."""
    return [
        ThumbnailSize(thumbnail_size.width, thumbnail_size.height, thumbnail_size.method)
        for thumbnail_size in storage.thumbnail_sizes
    ]


class MediaParts:
    """The media services. Public attributes are for the router."""

    log = Logger()

    def __init__(
        self,
        *,
        base: Foundation,
        peers: FederationPeerParts,
        follow: Follow,
        preview_web: PreviewClient,
        threads: MediaThreads,
        random: RandomBytes,
        plugins: Plugins,
    ) -> None:
        """Raises OSError if the folder cannot be created or the object store cannot be used."""
        config, clock, database, limiter = base.config, base.clock, base.database, base.limiter
        identity, registry = base.identity, base.registry
        storage = config.storage
        self._threads = threads
        self._store = MediaStore(database)
        self._workers = ImageWorkers(executor=threads.images)
        self._locations = (
            LocationRemover(
                executor=threads.photos,
                clock=clock,
                max_concurrent=PHOTO_PROCESSES,
                refuses_unsupported=storage.refuse_unremovable_locations,
            )
            if storage.remove_photo_locations
            else None
        )
        self.files = MediaFiles(
            folder=config.folder / storage.media_store_path,
            executor=threads.files,
            clock=clock,
            min_free_bytes=storage.media_min_free_disk,
        )
        self.files.open_folder()
        stores = make_media_storage(
            storage.media_object_store,
            clock,
            database,
            self.files,
            threads.object_reads,
            threads.object_writes,
        )
        self.contents = stores.contents
        self._store_jobs = stores.jobs
        server_name = identity.server_name
        quarantine = QuarantineStore(database=database, own=server_name)
        self.scanning = ScanningParts(
            scanning=storage.media_scanning,
            clock=clock,
            database=database,
            contents=self.contents,
            own=server_name,
            quarantine=quarantine,
            plugins=plugins,
            threads=threads.scans,
            registry=registry,
        )
        gate = self.scanning.gate
        freeze = read_media_freeze(storage)
        thumbnails = Thumbnails(
            contents=self.contents,
            workers=self._workers,
            max_pixels=storage.max_image_pixels,
            max_concurrent=IMAGE_PROCESSES,
            clock=clock,
            programs=storage.external_thumbnailers,
            sizes=read_allowed_sizes(storage),
        )
        eager_thumbnails = EagerThumbnails(
            thumbnails=thumbnails,
            gate=gate,
            clock=clock,
            sizes=read_thumbnail_sizes(storage) or SPECIFIED_SIZES,
            max_concurrent=IMAGE_PROCESSES,
            programs=storage.external_thumbnailers,
        )
        self.repository = MediaRepository(
            server_name=server_name,
            clock=clock,
            database=database,
            store=self._store,
            contents=self.contents,
            quarantine=quarantine,
            gate=gate,
            quotas=UploadQuotas(
                database=database,
                store=self._store,
                quotas=[
                    UploadQuota(each.time_period, each.max_size)
                    for each in storage.media_upload_limits
                ],
                total=storage.media_user_quota,
                by_type=storage.max_upload_size_by_type,
                info_uri=storage.media_limits_info_uri
                or config.name.public_baseurl
                or f"https://{server_name}/",
            ),
            secret_text=SecretGenerator(random),
            location_remover=self._locations,
            on_stored=eager_thumbnails.schedule if storage.thumbnails_at_upload else None,
            max_upload_size=min(storage.max_upload_size, self.scanning.largest_upload),
            max_pending=storage.max_pending_media_uploads,
            reservation_ms=storage.unused_expiration_time,
            freeze=freeze,
        )
        self.copies = RemoteCopies(
            store=RemoteMediaStore(database),
            contents=self.contents,
            quarantine=quarantine,
            gate=gate,
            downloads=RemoteDownloads(
                remote=MediaClient(requests=peers.requests, follow=follow),
                clock=clock,
                spool=self.contents.spool,
                max_bytes=min(storage.max_upload_size, self.scanning.largest_copy),
            ),
            policy=peers.policy,
            limiter=limiter,
            clock=clock,
            rate=Rate(
                storage.remote_media_download_per_second, storage.remote_media_download_burst_count
            ),
            refused_servers=storage.prevent_media_downloads_from,
            freeze=freeze,
        )
        self.previews = PreviewParts(
            config=config,
            clock=clock,
            database=database,
            contents=self.contents,
            thumbnails=thumbnails,
            quarantine=quarantine,
            gate=gate,
            web=preview_web,
            executor=threads.pages,
            random=random,
        )
        self.delivery = MediaDelivery(
            server_name=server_name,
            clock=clock,
            repository=self.repository,
            copies=self.copies,
            thumbnails=thumbnails,
            contents=self.contents,
            serves_unauthenticated=storage.legacy_media_endpoints,
        )
        self.for_servers = media_responses(self.delivery)
        self.proxy = ContentScannerAPI(
            delivery=self.delivery,
            bodies=EncryptedBodyReader(identity.key),
            limiter=limiter,
            scanner=self.scanning.scanning,
        )
        self.maintenance = MediaMaintenanceParts(
            storage=storage,
            clock=clock,
            database=database,
            identity=identity,
            store=self._store,
            contents=self.contents,
            scans=self.scanning.store,
        )

    @property
    def services(self) -> Sequence[object]:
        """The services that endpoints ask for."""
        return (
            self.delivery,
            self.for_servers,
            self.repository,
            self.previews.previews,
            self.proxy,
            self.scanning.administration,
            *self.maintenance.services,
        )

    def jobs(self) -> list[Job]:
        """Return the background jobs."""
        return [
            Job("delete_expired_media_reservations", self.repository.do_remove_expired, 600.0),
            *self._store_jobs,
            *self.previews.jobs(),
            *self.maintenance.jobs(),
            *self.scanning.jobs(),
        ]

    def sweep(self) -> None:
        """Delete the remains of a crash. Call it before the server listens."""
        Deferred.fromCoroutine(self.files.sweep(self._store.get_used_hashes)).addCallbacks(
            self._log_sweep,
            lambda failure: self.log.failure("cannot clean up the media folder", failure),
        )

    def _log_sweep(self, count: int | None) -> None:
        if count is None:
            self.log.info("another node is writing files, so the media folder is cleaned up later")
        elif count:
            self.log.info("deleted {count} unfinished uploads that a crash had left", count=count)

    def close_workers(self) -> None:
        """End the worker processes for images and pages."""
        self._workers.close()
        if self._locations is not None:
            self._locations.close()
        self.previews.close_workers()

    async def stop(self) -> None:
        """Finish pending writes, and end the worker processes and threads."""
        self.close_workers()
        await self._threads.files.close()
        await self._threads.images.close()
        await self._threads.photos.close()
        await self._threads.pages.close()
        await self._threads.object_reads.close()
        await self._threads.object_writes.close()
        await self._threads.scans.close()
