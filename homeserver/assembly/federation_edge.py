"""Puts together the edge to other servers: requests both ways, keys, and with whom we talk."""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from twisted.internet.interfaces import IReactorTime

from federation.endpoints.version import Implementation
from federation.fairness import PeerLimits, Turns
from federation.identity import ServerIdentity
from federation.keyring import Keyring, Notary
from federation.notary import KeyNotary
from federation.own_keys import OwnKeys
from federation.policy import Policy, PolicyRules, make_rules
from federation.protocol.ids import KeyID, ServerName
from federation.protocol.key_documents import VerifyKey
from federation.protocol.signing import parse_public_key
from federation.remote.server_keys import RemoteServerKeys
from federation.requests import Requests
from federation.signed_requests import SignedRequests
from federation.wire import Wire
from homeserver.config.limits import FederationLimits
from homeserver.config.others import Federation
from homeserver.config.server import Keys
from storage.database import Database
from storage.server_keys import ServerKeyStore


class EdgeParts:
    """The edge. What is public is for the other parts and for the router."""

    def __init__(
        self,
        federation: Federation,
        rc_federation: FederationLimits,
        keys: Keys,
        clock: IReactorTime,
        database: Database,
        wire: Wire,
        identity: ServerIdentity,
        now_ms: Callable[[], int],
    ) -> None:
        store = ServerKeyStore(database)
        old_keys = {KeyID(key_id): old for key_id, old in keys.old_signing_keys.items()}
        self.own_keys = OwnKeys(
            identity, now_ms, {key_id: (old.key, old.expired_ts) for key_id, old in old_keys.items()}
        )
        self.policy = Policy(identity.server_name, rules_of(federation), clock.seconds)
        self.requests = Requests(wire, identity, self.policy)
        self.keyring = Keyring(
            RemoteServerKeys(self.requests),
            store,
            identity,
            now_ms,
            notaries=notaries_of(federation),
            old_keys={
                key_id: VerifyKey(parse_public_key(key_id, old.key), old.expired_ts) for key_id, old in old_keys.items()
            },
        )
        self.signed_requests = SignedRequests(self.keyring, self.policy, identity, now_ms)
        self.turns = Turns(
            clock,
            PeerLimits(
                window=rc_federation.window_size / 1000,
                asks_in_window=rc_federation.sleep_limit,
                delay=rc_federation.sleep_delay / 1000,
                most_waiting=rc_federation.reject_limit,
                at_once=rc_federation.concurrent,
            ),
        )
        self.notary = KeyNotary(self.keyring, store, self.own_keys, identity, self.policy, now_ms)
        self.services = (Implementation("Mahalla", program_version()), self.notary, self.own_keys)
        """For endpoints of the edge itself."""


def rules_of(federation: Federation) -> PolicyRules:
    """The policy of the configuration."""
    return make_rules(
        federation.federation_domain_whitelist,
        federation.federation_domain_blacklist,
        enabled=federation.federation.enabled,
        is_simulation=federation.federation_policy_simulation,
    )


def notaries_of(federation: Federation) -> list[Notary]:
    """Those of the configuration."""
    return [
        Notary(
            ServerName(key_server.server_name),
            {KeyID(key_id): parse_public_key(key_id, key) for key_id, key in key_server.verify_keys.items()},
            unsigned=key_server.accept_keys_insecurely,
        )
        for key_server in federation.trusted_key_servers
    ]


def program_version() -> str:
    """The version that is installed."""
    try:
        return version("mahalla")
    except PackageNotFoundError:
        return "development"
