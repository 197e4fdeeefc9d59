"""How long messages are kept here, for clients that show it. proposal: MSC1763"""

from collections.abc import Mapping
from typing import Any

from federation.protocol.errors import Unrecognized
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.services.discovery.unstable_features import RETENTION, OfferedFeatures
from homeserver.services.retention.configuration import RetentionConfiguration


@endpoint(
    "GET", "/_matrix/client/unstable/org.matrix.msc1763/retention/configuration", auth=Auth.USER
)
async def get_retention_configuration(
    configuration: RetentionConfiguration, offered: OfferedFeatures, _caller: Requester
) -> Mapping[str, Any]:
    """The rules of the server. Raises Unrecognized where messages are kept for ever."""
    if RETENTION not in offered.features:
        raise Unrecognized("Messages are kept for ever here")
    return configuration.json
