"""Wires the maintenance of media: tracking which files are in use, deletion, users' lists of their
uploads, administration."""

from collections.abc import Sequence

from twisted.internet.interfaces import IReactorTime

from federation.peers.identity import ServerIdentity
from homeserver.cluster.jobs import Job
from homeserver.config.server import StorageOptions
from homeserver.services.media.administration import MediaAdministration
from homeserver.services.media.own_uploads import OwnUploads
from homeserver.services.media.references import POLL_SECONDS, MediaReferences
from homeserver.services.media.removal import MediaRemoval
from storage.accounts.accounts import AccountStore
from storage.engine.database import Database
from storage.media.contents import MediaContents
from storage.media.lists import MediaListStore
from storage.media.media import MediaStore
from storage.media.quarantine import QuarantineStore
from storage.media.remote_media import RemoteMediaStore
from storage.media.removal import MediaRemovalStore
from storage.media.scans import MediaScanStore
from storage.media.usage import MediaUsageStore


class MediaMaintenanceParts:
    """Tracks references to files, and lists and deletes files."""

    def __init__(
        self,
        *,
        storage: StorageOptions,
        clock: IReactorTime,
        database: Database,
        identity: ServerIdentity,
        store: MediaStore,
        contents: MediaContents,
        scans: MediaScanStore,
    ) -> None:
        server_name = identity.server_name
        self._deletes = storage.media_deletion.enabled
        self.references = MediaReferences(
            database=database,
            media=store,
            server_name=server_name,
            now_ms=lambda: int(clock.seconds() * 1000),
        )
        self.removal = MediaRemoval(
            store=MediaRemovalStore(database=database, own=server_name),
            contents=contents,
            clock=clock,
            grace_ms=storage.media_deletion.grace_period,
            local_lifetime_ms=storage.media_retention.local_media_lifetime,
            remote_lifetime_ms=storage.media_retention.remote_media_lifetime,
            local_age_ms=storage.media_retention.local_media_max_age,
            remote_age_ms=storage.media_retention.remote_media_max_age,
            record_ms=storage.media_deletion.record_lifetime,
        )

        lists = MediaListStore(database=database, own=server_name)
        self.uploads = OwnUploads(
            server_name=server_name, store=store, lists=lists, scans=scans, removal=self.removal
        )
        self.administration = MediaAdministration(
            identity=identity,
            accounts=AccountStore(database),
            store=store,
            copies=RemoteMediaStore(database),
            lists=lists,
            usage=MediaUsageStore(database=database, own=server_name),
            quarantine=QuarantineStore(database=database, own=server_name),
            scans=scans,
            removal=self.removal,
            clock=clock,
        )

    @property
    def services(self) -> Sequence[object]:
        """The services that endpoints ask for."""
        return (self.references, self.uploads, self.administration)

    def jobs(self) -> Sequence[Job]:
        """Return the background jobs. References are tracked even if deletion is disabled, since
        they cannot be reconstructed later."""
        jobs = [
            Job("track_media_references", self.references.do_track, POLL_SECONDS),
            Job("delete_unused_media", self.removal.do_remove_unused_uploads, 600.0),
            Job("delete_unused_remote_media", self.removal.do_remove_unused_copies, 600.0),
            Job("delete_old_media", self.removal.do_remove_old_uploads, 600.0),
            Job("delete_old_remote_media", self.removal.do_remove_old_copies, 600.0),
            Job("delete_old_media_records", self.removal.do_delete_records, 3600.0),
        ]
        if self._deletes:
            jobs.append(Job("delete_unreferenced_media", self.removal.do_remove_unreferenced, 60.0))
        return jobs
