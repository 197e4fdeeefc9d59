"""Options about other systems: federation, proxies, TURN servers, application services, Redis."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from federation.http_client.proxy import BadProxy, read_proxy
from federation.peers.federation_policy import InvalidPattern, ServerPatterns
from homeserver.config.option import JSON, Duration, Network, Secret, option, required, section

PRIVATE_NETWORKS = (
    "127.0.0.0/8",
    "10.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "100.64.0.0/10",
    "192.0.0.0/24",
    "169.254.0.0/16",
    "192.88.99.0/24",
    "198.18.0.0/15",
    "192.0.2.0/24",
    "198.51.100.0/24",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
    "0.0.0.0/8",
    "::/128",
    "::1/128",
    "fe80::/10",
    "fc00::/7",
    "64:ff9b:1::/48",
    "2001:db8::/32",
    "ff00::/8",
    "fec0::/10",
)
"""Ranges that a public server must not contact: private, link-local, documentation, multicast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyServerOptions:
    """A trusted notary server for other servers' keys."""

    server_name: str = required("The server name of the notary.")
    verify_keys: Mapping[str, str] = option({}, "The notary's own keys, if you know them.")
    accept_keys_insecurely: bool = option(
        False, "Accepts the notary's responses even if its own key is not known."
    )


def _check_patterns(patterns: tuple[str, ...] | None) -> str | None:
    try:
        ServerPatterns(patterns or ())
    except InvalidPattern as error:
        return f"must be names or patterns of servers: {error}"
    return None


def _check_proxy(url: str | None) -> str | None:
    try:
        read_proxy(url or "http://none")
    except BadProxy as error:
        return str(error)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationBehaviourOptions:
    """Communication with other servers."""

    enabled: bool = option(True, "Enables federation.")
    partial_state_joins: bool = option(
        True,
        "Joins large rooms before the full member list is known. People can read and write "
        "immediately, and the rest is fetched in the background.",
    )
    destination_min_retry_interval: Duration = option(
        Duration(5_000),
        "The first pause before an unreachable server is retried. A server that contacts us is "
        "retried at once, or within a minute if such a retry has just failed.",
        minimum=1000,
        example="5s",
    )
    destination_retry_multiplier: float = option(
        3, "The factor by which each further pause grows.", minimum=1, maximum=100
    )
    destination_max_retry_interval: Duration = option(
        Duration(3_600_000),
        "The longest pause.",
        minimum=60_000,
        maximum=31_536_000_000,
        example="1h",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationMemberListOptions:
    """The signed member list of a closed federation."""

    url: str | None = option(
        None, "The URL of the list.", example="https://federation.example/members.jws"
    )
    path: Path | None = option(None, "The file with the list, instead of `url`.")
    verify_keys: tuple[str, ...] = option(
        (),
        "The Ed25519 keys that can sign the list, in base64. A signature by one key is enough.",
        example='["Noi6WqcDj0QmPxCNQqgezwTlBKrfqehY1u2FyWP9uYw"]',
    )
    authorities: tuple[Path, ...] = option(
        (),
        "The certificate authorities (PEM files), one of which must have issued the certificate in "
        "the list (`x5c`). Used if the list is signed with a certificate, not with a key in "
        "`verify_keys`.",
    )
    signer: str | None = option(
        None, "The name that the certificate in the list must have.", example="federation.example"
    )
    refresh_interval: Duration = option(
        Duration(3_600_000),
        "How often the server checks for a newer list. If the current one expires in less than "
        "this time, it checks every minute.",
        minimum=60_000,
    )

    @property
    def is_used(self) -> bool:
        """Whether a member list is configured."""
        return self.url is not None or self.path is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationOptions:
    """Federation."""

    federation: FederationBehaviourOptions = section(
        FederationBehaviourOptions, "Communication with other servers."
    )
    federation_domain_whitelist: tuple[str, ...] | None = option(
        None,
        "The servers with which this server may communicate. `null`: all, `[]`: none. Names, "
        "wildcards (`*`, `?`), and regular expressions between slashes. Read again on SIGHUP.",
        example='["university.example", "*.ministry.example", "/school-[0-9]+[.]example/"]',
        check=_check_patterns,
    )
    federation_domain_blacklist: tuple[str, ...] = option(
        (),
        "Servers with which this server never communicates, even if another option allows them. "
        "Patterns as in `federation_domain_whitelist`; they match a name with any port. Read again "
        "on SIGHUP.",
        example='["spam.example", "*.spam.example"]',
        check=_check_patterns,
    )
    federation_policy_simulation: bool = option(
        False,
        "Does not apply `federation_domain_whitelist`, `federation_domain_blacklist` and "
        "`federation_member_list`, but logs the servers that they would refuse. Read again on "
        "SIGHUP.",
    )
    federation_member_list: FederationMemberListOptions = section(
        FederationMemberListOptions,
        "The signed list of the servers of a closed federation, with their rights. All other "
        "servers are refused. Read again on SIGHUP.",
    )
    allow_profile_lookup_over_federation: bool = option(
        True,
        "Lets other servers request users' profiles. Independent of this option, the servers in "
        "a room have the names and pictures of its members.",
    )
    federation_verify_certificates: bool = option(
        True, "Requires valid certificates of other servers. `false` is for tests only."
    )
    federation_custom_ca_list: tuple[Path, ...] = option(
        (),
        "Certificate authorities (PEM files) for other servers, instead of the system's. "
        "Everything else (identity servers, captcha services, identity providers) needs an "
        "authority of the system, or of the file that the environment variable `SSL_CERT_FILE` "
        "names.",
    )
    trusted_key_servers: tuple[KeyServerOptions, ...] = option(
        (),
        "Notaries: servers that are asked for the keys of other servers that do not respond. None "
        "by default.",
        example="[{server_name: matrix.example.org}]",
    )
    ip_range_blacklist: tuple[Network, ...] = option(
        tuple(Network(each) for each in PRIVATE_NETWORKS),
        "IP addresses that this server never contacts, even if a name resolves to them.",
    )
    https_proxy: str | None = option(
        None,
        "An HTTP proxy for all outgoing TLS connections. Default: the environment variable "
        "`https_proxy`.",
        example="http://proxy.example.org:3128",
        check=_check_proxy,
    )
    no_proxy_hosts: tuple[str, ...] | None = option(
        None,
        "Domain names (including subdomains), IP addresses and networks that are contacted "
        "without the proxy. Default: the environment variable `no_proxy`.",
        example='["example.org", "10.0.0.0/8"]',
    )
    ip_range_whitelist: tuple[Network, ...] = option(
        (), "Exceptions from `ip_range_blacklist`.", example='["10.20.0.0/16"]'
    )


def _check_transports(transports: tuple[Mapping[str, JSON], ...]) -> str | None:
    for transport in transports:
        if not isinstance(transport.get("type"), str):
            return "must be a list of transports, each with a type"
        if transport["type"] == "livekit" and not isinstance(
            transport.get("livekit_service_url"), str
        ):
            return "must have livekit_service_url for a transport of the type livekit"
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixRTCOptions:
    """Group calls (MatrixRTC)."""

    transports: tuple[Mapping[str, JSON], ...] = option(
        (),
        "The transports for calls, in order of preference. They are sent to clients unchanged, "
        "and published in `/.well-known/matrix/client`.",
        example='[{type: livekit, livekit_service_url: "https://livekit.example.org"}]',
        check=_check_transports,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CallsOptions:
    """Calls."""

    matrix_rtc: MatrixRTCOptions = section(MatrixRTCOptions, "Calls with several people.")

    turn_uris: tuple[str, ...] = option(
        (), "The TURN servers.", example='["turn:turn.example.org?transport=udp"]'
    )
    turn_shared_secret: Secret | None = option(
        None, "The secret that the TURN servers share with this server."
    )
    turn_username: str | None = option(
        None, "The user name for TURN servers without a shared secret."
    )
    turn_password: Secret | None = option(None, "The password of `turn_username`.")
    turn_user_lifetime: Duration = option(Duration(3_600_000), "How long a credential is valid.")
    turn_allow_guests: bool = option(False, "Lets guests use the TURN servers.")


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisOptions:
    """Redis or Valkey, through which nodes notify each other."""

    enabled: bool = option(False, "Enables Redis.")
    host: str = option("localhost", "The host of Redis.")
    port: int = option(6379, "The port of Redis.", minimum=1, maximum=65535)
    password: Secret | None = option(None, "The password of Redis.")


@dataclass(frozen=True, slots=True, kw_only=True)
class IntegrationOptions:
    """Application services, Redis."""

    app_service_config_files: tuple[Path, ...] = option(
        (),
        "Registration files of application services (bridges, bots). An application service can "
        "register, sign in and act for its users, and nobody else can use its exclusive "
        "namespaces. The server does not send it transactions yet.",
    )
    redis: RedisOptions = section(
        RedisOptions, "Redis or Valkey. This server does not need it.", not_implemented=True
    )
