"""The complete configuration: its groups, in the order of the sample file.

In YAML the options of a group are at the top level of the file. The groups exist for the code, so
that each part of the server gets only the options that it needs (`app.py` passes groups, sections
or single values, never `Config`).
"""

from dataclasses import dataclass
from pathlib import Path

from homeserver.config.accounts import Registration, Sessions
from homeserver.config.captcha import Captcha
from homeserver.config.email import Mail
from homeserver.config.limits import Limits
from homeserver.config.memory import Memory
from homeserver.config.outgoing import Calls, Federation, Others
from homeserver.config.pages import Pages
from homeserver.config.previews import URLPreviews
from homeserver.config.push import Notifications
from homeserver.config.rooms import People, Rooms
from homeserver.config.search import Search
from homeserver.config.server import Keys, Name, Network, Observation, Storage
from homeserver.config.sms import TextMessages
from homeserver.config.upstream import Upstream


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A checked configuration, with defaults filled in."""

    name: Name
    network: Network
    storage: Storage
    keys: Keys
    registration: Registration
    captcha: Captcha
    sessions: Sessions
    upstream: Upstream
    mail: Mail
    text_messages: TextMessages
    pages: Pages
    notifications: Notifications
    rooms: Rooms
    people: People
    search: Search
    memory: Memory
    federation: Federation
    limits: Limits
    previews: URLPreviews
    calls: Calls
    others: Others
    observation: Observation
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
    "name": Name,
    "network": Network,
    "storage": Storage,
    "keys": Keys,
    "registration": Registration,
    "captcha": Captcha,
    "sessions": Sessions,
    "upstream": Upstream,
    "mail": Mail,
    "text_messages": TextMessages,
    "pages": Pages,
    "notifications": Notifications,
    "rooms": Rooms,
    "people": People,
    "search": Search,
    "memory": Memory,
    "federation": Federation,
    "limits": Limits,
    "previews": URLPreviews,
    "calls": Calls,
    "others": Others,
    "observation": Observation,
}
"""All groups of `Config` by attribute name."""
