"""Wires the connections to other servers: requests in both directions, signing keys, federation
policy."""

from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from msgspec.structs import replace

from federation.endpoints.version import Implementation
from federation.peers.backoff_schedule import BackoffSchedule
from federation.peers.client import FederationClient
from federation.peers.federation_policy import FederationPolicy, PolicyRules, make_rules
from federation.peers.keyring import Keyring, Notary
from federation.peers.member_list_refresher import Fetch, MemberListRefresher, MemberListSource
from federation.peers.notary import KeyNotaryService
from federation.peers.own_keys import PublishedServerKeys
from federation.peers.peer_backoff import BackoffWire, PeerBackoff
from federation.peers.peer_queue import PeerLimits, PeerQueue
from federation.peers.server_keys import ServerKeyClient
from federation.peers.signed_list import MemberListTrust, read_authorities
from federation.peers.signed_requests import RequestVerifier
from federation.peers.wire import Wire
from federation.protocol.ids import KeyID, ServerName
from federation.protocol.key_documents import VerifyKey
from federation.protocol.signing import decode_base64, parse_public_key
from homeserver.cluster.jobs import Job
from homeserver.config.outgoing import FederationOptions
from homeserver.observe.federation import MemberListMetrics
from homeserver.wiring.foundation import Foundation
from storage.federation.server_keys import ServerKeyStore
from storage.federation.signed_documents import SignedDocumentStore

MAX_SLOW_REQUESTS: Final = 20
"""Concurrent requests per server that may wait long, for example for a file during its upload."""
UNRESPONSIVE_MS: Final = 60_000


class FederationPeerParts:
    """The connections to other servers.

    Public attributes are for the other parts and the router."""

    def __init__(
        self,
        *,
        base: Foundation,
        wire: Wire,
        fetch: Fetch,
    ) -> None:
        config, clock, database = base.config, base.clock, base.database
        identity, now_ms = base.identity, base.now_ms
        federation, keys = config.federation, config.keys
        rc_federation = config.limits.rc_federation
        store = ServerKeyStore(database)
        old_keys = {KeyID(key_id): old for key_id, old in keys.old_signing_keys.items()}
        self.own_keys = PublishedServerKeys(
            identity=identity,
            now_ms=now_ms,
            old_keys={key_id: (old.key, old.expired_ts) for key_id, old in old_keys.items()},
            valid_ms=keys.key_refresh_interval,
        )
        self.policy = FederationPolicy(
            own=identity.server_name, rules=read_policy_rules(federation), seconds=clock.seconds
        )
        self.member_lists = MemberListRefresher(
            source=read_member_list_source(federation),
            store=SignedDocumentStore(database),
            policy=self.policy,
            fetch=fetch,
            observer=MemberListMetrics(base.registry),
            now=clock.seconds,
        )
        self.unresponsive_servers: PeerBackoff[ServerName] = PeerBackoff(
            now_ms=now_ms, schedule=BackoffSchedule(UNRESPONSIVE_MS, UNRESPONSIVE_MS)
        )
        """Servers to which a request recently timed out. Other requests do not wait for them."""
        self.requests = FederationClient(
            wire=BackoffWire(wire=wire, backoff=self.unresponsive_servers),
            identity=identity,
            policy=self.policy,
            now_ms=now_ms,
        )
        self.keyring = Keyring(
            remote=ServerKeyClient(self.requests),
            store=store,
            identity=identity,
            now_ms=now_ms,
            notaries=read_notaries(federation),
            pinned_keys=self.policy.pinned_keys,
            old_keys={
                key_id: VerifyKey(parse_public_key(key_id, old.key), old.expired_ts)
                for key_id, old in old_keys.items()
            },
        )
        self.signed_requests = RequestVerifier(
            keyring=self.keyring, policy=self.policy, identity=identity, now_ms=now_ms
        )
        limits = PeerLimits(
            window=rc_federation.window_size / 1000,
            requests_per_window=rc_federation.sleep_limit,
            delay=rc_federation.sleep_delay / 1000,
            max_waiting=rc_federation.reject_limit,
            max_concurrent=rc_federation.concurrent,
        )
        self.admission = PeerQueue(clock=clock, limits=limits)
        self.slow_admission = PeerQueue(
            clock=clock, limits=replace(limits, max_concurrent=MAX_SLOW_REQUESTS)
        )
        self.notary = KeyNotaryService(
            keyring=self.keyring,
            store=store,
            own_keys=self.own_keys,
            identity=identity,
            policy=self.policy,
            now_ms=now_ms,
        )
        self.services = (
            Implementation("Mahalla", program_version()),
            self.notary,
            self.own_keys,
            self.policy,
        )
        """Services for the endpoints of these parts."""


def read_policy_rules(federation: FederationOptions) -> PolicyRules:
    """Return the configured policy."""
    return make_rules(
        federation.federation_domain_whitelist,
        federation.federation_domain_blacklist,
        enabled=federation.federation.enabled,
        is_simulation=federation.federation_policy_simulation,
        has_member_list=federation.federation_member_list.is_used,
    )


def read_member_list_source(federation: FederationOptions) -> MemberListSource | None:
    """Return the source of the federation's member list; None if there is none. Raises OSError,
    ValueError for certificates that cannot be read."""
    federation_member_list = federation.federation_member_list
    if not federation_member_list.is_used:
        return None
    keys = tuple(decode_base64(key) for key in federation_member_list.verify_keys)
    authorities = tuple(
        each for path in federation_member_list.authorities for each in read_authorities(path)
    )
    return MemberListSource(
        federation_member_list.url,
        federation_member_list.path,
        MemberListTrust(keys, authorities, federation_member_list.signer),
        federation_member_list.refresh_interval / 1000,
    )


def member_list_jobs(member_lists: MemberListRefresher) -> Sequence[Job]:
    """Return the jobs that keep the member list current."""
    return (Job("refresh_member_list", member_lists.do_refresh, 60.0),)


def read_notaries(federation: FederationOptions) -> list[Notary]:
    """Return the configured notary servers."""
    return [
        Notary(
            ServerName(key_server.server_name),
            {
                KeyID(key_id): parse_public_key(key_id, key)
                for key_id, key in key_server.verify_keys.items()
            },
            unsigned=key_server.accept_keys_insecurely,
        )
        for key_server in federation.trusted_key_servers
    ]


@cache
def program_version() -> str:
    """Return the installed version. It is cached for the process."""
    try:
        return version("mahalla")
    except PackageNotFoundError:
        return "development"
