"""The complete configuration: its groups of options, in the order of the sample file.

The YAML file has no level for groups: the options and sections of all groups are at its top level.
A section is a nested mapping of options, such as `email`. The groups exist for the code, so that
each service gets only the options that it needs: `homeserver/wiring` passes groups, sections or
single values to services, never `Config`.
"""

from dataclasses import dataclass
from pathlib import Path

from homeserver.config.accounts import RegistrationOptions, SessionsOptions
from homeserver.config.captcha import CaptchaOptions
from homeserver.config.email import MailOptions
from homeserver.config.limits import LimitOptions
from homeserver.config.memory import MemoryOptions
from homeserver.config.outgoing import CallsOptions, FederationOptions, IntegrationOptions
from homeserver.config.pages import PageOptions
from homeserver.config.previews import URLPreviewOptions
from homeserver.config.push import NotificationOptions
from homeserver.config.rooms import RoomOptions, UserOptions
from homeserver.config.search import SearchOptions
from homeserver.config.server import (
    KeyOptions,
    MonitoringOptions,
    NetworkOptions,
    ServerNameOptions,
    StorageOptions,
)
from homeserver.config.sms import TextMessageOptions
from homeserver.config.upstream import UpstreamOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A checked configuration, with defaults filled in."""

    name: ServerNameOptions
    network: NetworkOptions
    storage: StorageOptions
    keys: KeyOptions
    registration: RegistrationOptions
    captcha: CaptchaOptions
    sessions: SessionsOptions
    upstream: UpstreamOptions
    mail: MailOptions
    text_messages: TextMessageOptions
    pages: PageOptions
    notifications: NotificationOptions
    rooms: RoomOptions
    users: UserOptions
    search: SearchOptions
    memory: MemoryOptions
    federation: FederationOptions
    limits: LimitOptions
    previews: URLPreviewOptions
    calls: CallsOptions
    integrations: IntegrationOptions
    monitoring: MonitoringOptions
    folder: Path
    """The folder of the (first) configuration file; not an option."""

    @property
    def server_name(self) -> str:
        return self.name.server_name

    @property
    def signing_key_path(self) -> Path:
        """Return the path of the signing key, configured or by default."""
        return self.keys.signing_key_path or self.folder / f"{self.name.server_name}.signing.key"


GROUPS: dict[str, type] = {
    "name": ServerNameOptions,
    "network": NetworkOptions,
    "storage": StorageOptions,
    "keys": KeyOptions,
    "registration": RegistrationOptions,
    "captcha": CaptchaOptions,
    "sessions": SessionsOptions,
    "upstream": UpstreamOptions,
    "mail": MailOptions,
    "text_messages": TextMessageOptions,
    "pages": PageOptions,
    "notifications": NotificationOptions,
    "rooms": RoomOptions,
    "users": UserOptions,
    "search": SearchOptions,
    "memory": MemoryOptions,
    "federation": FederationOptions,
    "limits": LimitOptions,
    "previews": URLPreviewOptions,
    "calls": CallsOptions,
    "integrations": IntegrationOptions,
    "monitoring": MonitoringOptions,
}
"""All groups of `Config` by attribute name."""
