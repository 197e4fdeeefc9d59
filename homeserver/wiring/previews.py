"""Wires URL previews."""

from twisted.internet.interfaces import IReactorTime

from homeserver.cluster.jobs import Job
from homeserver.config.configuration import Config
from homeserver.config.oembed_files import read_provider_files
from homeserver.services.media.thumbnails import Thumbnails
from homeserver.services.previews.fetching import PreviewClient, PreviewFetcher
from homeserver.services.previews.oembed import OEmbedProviders
from homeserver.services.previews.pages import PageParser
from homeserver.services.previews.rules import PreviewRules
from homeserver.services.previews.url_previews import URLPreviews
from homeserver.services.scanning.gate import ScanGate
from homeserver.services.tokens.secret_tokens import RandomBytes, SecretGenerator
from storage.engine.database import Database
from storage.engine.executors import Executor
from storage.media.contents import MediaContents
from storage.media.quarantine import QuarantineStore
from storage.media.url_previews import URLPreviewStore


class PreviewParts:
    """The services for URL previews. Public attributes are for the router."""

    def __init__(
        self,
        *,
        config: Config,
        clock: IReactorTime,
        database: Database,
        contents: MediaContents,
        thumbnails: Thumbnails,
        quarantine: QuarantineStore,
        gate: ScanGate,
        web: PreviewClient,
        executor: Executor,
        random: RandomBytes,
    ) -> None:
        """`web` has the address policy of previews. `executor`: its threads wait for the processes
        that read pages."""
        previews = config.previews
        rules = PreviewRules(
            denied=previews.url_preview_url_blacklist, allowed=previews.url_preview_url_allowlist
        )
        headers = [
            (
                "User-Agent",
                f"Mahalla (bot; +{config.name.public_baseurl or f'https://{config.server_name}/'})",
            ),
            ("Accept-Language", ", ".join(previews.url_preview_accept_language)),
        ]
        max_image = min(previews.max_spider_size, config.storage.max_upload_size)
        self._pages = PageParser(executor=executor)
        self.previews = URLPreviews(
            server_name=config.server_name,
            clock=clock,
            store=URLPreviewStore(database),
            contents=contents,
            thumbnails=thumbnails,
            quarantine=quarantine,
            gate=gate,
            pages=self._pages,
            rules=rules,
            sites=PreviewFetcher(
                web=web, clock=clock, rules=rules, headers=headers, max_image=max_image
            )
            if previews.url_preview_enabled
            else None,
            texts=SecretGenerator(random),
            providers=OEmbedProviders(read_provider_files(previews.oembed.additional_providers)),
            authenticated_only=config.storage.enable_authenticated_media,
        )

    def jobs(self) -> list[Job]:
        """Return the background jobs."""
        return [Job("delete_old_url_previews", self.previews.do_remove_old, 600.0)]

    def close_workers(self) -> None:
        """End the processes that read pages."""
        self._pages.close()
