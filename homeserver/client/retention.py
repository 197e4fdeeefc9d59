"""Message retention rules, for clients that show them. proposal: MSC1763"""

from collections.abc import Mapping
from typing import Any

from federation.protocol.errors import Unrecognized
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.services.discovery.unstable_features import RETENTION, UnstableFeatures
from homeserver.services.retention.configuration import RetentionConfiguration


@endpoint(
    "GET", "/_matrix/client/unstable/org.matrix.msc1763/retention/configuration", auth=Auth.USER
)
async def get_retention_configuration(
    configuration: RetentionConfiguration, offered: UnstableFeatures, _caller: Requester
) -> Mapping[str, Any]:
    """Return the retention rules of the server. Raises Unrecognized if retention is off."""
    if RETENTION not in offered.features:
        raise Unrecognized("This server does not limit how long messages are kept")
    return configuration.json
