"""Lists the supported versions of the specification and the supported unstable features.

`homeserver/services/discovery/unstable_features.py` adds the features that depend on the
configuration.

spec: client-server-api#get_matrixclientversions
"""

from typing import Final

from homeserver.api.endpoint import Auth, endpoint
from homeserver.services.discovery.unstable_features import UnstableFeatures

VERSIONS: Final = tuple(f"v1.{minor}" for minor in range(1, 20))

UNSTABLE_FEATURES: Final = {
    "uk.tcpip.msc4133": True,
    "uk.tcpip.msc4133.stable": True,
    "org.matrix.e2e_cross_signing": True,
    "org.matrix.msc2285.stable": True,
    "org.matrix.msc3440.stable": True,
    "org.matrix.msc3715.stable": True,
    "org.matrix.msc3771": True,
    "org.matrix.msc3773": True,
    "org.matrix.msc3814": True,
    "org.matrix.msc3827.stable": True,
    "org.matrix.msc3391": True,
    "org.matrix.msc3890": True,
    "org.matrix.msc4143": True,
    "org.matrix.msc4155": True,
    "org.matrix.msc4262": True,
    "org.matrix.msc4306": True,
    "org.matrix.msc4354": True,
    "org.matrix.msc4380": True,
    "org.matrix.msc4380.stable": True,
    "org.matrix.simplified_msc3575": True,
    "org.matrix.msc3856.stable": True,
    "org.matrix.msc3881": True,
    "org.matrix.msc3874": True,
    "org.matrix.msc3912": True,
    "org.matrix.msc3981": True,
    "com.beeper.msc4169": True,
    "uk.timedout.msc4323": True,
    "org.matrix.msc4028": True,
    "uk.half-shot.msc2666.query_mutual_rooms": True,
    "uk.half-shot.msc2666.query_mutual_rooms.stable": True,
}


@endpoint("GET", "/_matrix/client/versions", auth=Auth.NONE)
async def get_versions(offered: UnstableFeatures) -> dict[str, object]:
    """Return the supported versions and features, the same for every caller."""
    return {"versions": VERSIONS, "unstable_features": {**UNSTABLE_FEATURES, **offered.features}}
