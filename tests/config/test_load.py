"""Reading configuration files: defaults, errors and notices."""

from pathlib import Path

import pytest

from federation.protocol.room_versions import DEFAULT_ROOM_VERSION
from homeserver.config.configuration import GROUPS
from homeserver.config.limits import RateLimit
from homeserver.config.load import REASONS, ConfigError, load_config, synapse_keys
from homeserver.config.read import format_place, iterate_options
from tests.helpers.config_folder import ConfigFolder


def test_only_the_server_name_is_required(folder: ConfigFolder) -> None:
    config = folder.load("server_name: example.org").config
    assert config.server_name == "example.org"
    assert config.network.listeners[0].port == 8008
    assert config.storage.database.name == "sqlite3"
    assert config.registration.enable_registration is False
    assert config.federation.trusted_key_servers == ()
    assert config.rooms.default_room_version == DEFAULT_ROOM_VERSION.identifier
    assert config.signing_key_path == folder.path / "example.org.signing.key"


@pytest.mark.parametrize("spelt", ["0660", "0o660", "432", '"0660"'])
def test_permissions_are_octal(folder: ConfigFolder, spelt: str) -> None:
    listener = "{path: hs.socket, mode: %s, type: http, resources: [{names: [client]}]}"
    config = folder.load(f"server_name: a.b\nlisteners: [{listener % spelt}]").config
    assert config.network.listeners[0].mode == 0o660
    (wrong,) = folder.errors(f"server_name: a.b\nlisteners: [{listener % 660}]")
    assert "at most 0o777" in wrong


def test_use_presence_is_a_notice_that_names_the_new_option(folder: ConfigFolder) -> None:
    (notice,) = folder.notices("server_name: a.b\nuse_presence: false")
    assert "`presence.enabled`" in notice


def test_a_file_for_synapse_takes_effect(folder: ConfigFolder) -> None:
    loaded = folder.load(
        """
        server_name: "hs1.example"
        pid_file: "/run/hs.pid"
        listeners:
          - port: 8448
            bind_addresses: ["127.0.0.1"]
            type: http
            tls: true
            x_forwarded: false
            resources:
              - names: [federation]
                compress: true
        tls_certificate_path: "/etc/tls.crt"
        tls_private_key_path: "/etc/tls.key"
        database:
          name: psycopg2
          txn_limit: 10000
          args: {user: hs, dbname: hs, host: /run, cp_min: 2, cp_max: 9}
        media_store_path: "/srv/media"
        max_upload_size: 50M
        signing_key_path: "/etc/signing.key"
        report_stats: false
        enable_registration: yes
        enable_registration_without_verification: true
        bcrypt_rounds: 4
        macaroon_secret_key: "abc"
        rc_message: {per_second: 100000, burst_count: 100000}
        rc_login:
          failed_attempts: {per_second: 7}
        session_lifetime: 7d
        trusted_key_servers: []
        experimental_features: {msc9999_enabled: true}
        encryption_enabled_by_default_for_room_type: off
        """
    )
    config = loaded.config
    (listener,) = config.network.listeners
    assert (listener.port, listener.tls, listener.bind_addresses) == (8448, True, ("127.0.0.1",))
    assert (listener.resources[0].names, listener.resources[0].compress) == (("federation",), True)
    assert config.network.tls_certificate_path == Path("/etc/tls.crt")
    assert config.storage.database.args["cp_max"] == 9
    assert config.storage.max_upload_size == 50 * 1024 * 1024
    assert config.registration.enable_registration is True
    assert config.sessions.bcrypt_rounds == 4
    assert config.sessions.session_lifetime == 7 * 24 * 3600 * 1000
    assert config.limits.rc_message == RateLimit(per_second=100000, burst_count=100000)
    assert config.limits.rc_login.failed_attempts == RateLimit(per_second=7, burst_count=3)
    assert config.limits.rc_login.address == RateLimit(per_second=0.5, burst_count=50)
    assert config.rooms.encryption_enabled_by_default_for_room_type == "off"
    silent = {notice.split(": ")[1] for notice in loaded.notices}
    assert {
        "report_stats",
        "macaroon_secret_key",
        "experimental_features",
        "database.txn_limit",
    } <= silent
    assert "bcrypt_rounds" not in silent


def test_all_errors_are_reported_with_file_line_key_value_and_nearest_key(
    folder: ConfigFolder,
) -> None:
    assert folder.errors(
        "server_name: https://example.org\n"
        "max_upload_size: 50MiBB\n"
        "rc_mesage: {per_second: 1}\n"
        "session_lifetime: soon\n"
        "bcrypt_rounds: 99\n"
        "rc_login:\n"
        "  adress: {per_second: 1}\n"
        "listeners:\n"
        "  - port: http\n"
        "    resources: [{names: [clients]}]\n"
        "zzz: 1\n"
    ) == [
        "homeserver.yaml:1: server_name: got 'https://example.org'; must be a host name with an "
        "optional :PORT, as in user IDs: no https://, no path",
        "homeserver.yaml:2: max_upload_size: got '50MiBB'; want a size such as 512K, 50M or 2G",
        "homeserver.yaml:3: rc_mesage: unknown option (its value is {'per_second': 1}); "
        "did you mean rc_message?",
        "homeserver.yaml:4: session_lifetime: got 'soon'; want a duration such as 30s, 5m, 24h or "
        "7d",
        "homeserver.yaml:5: bcrypt_rounds: got 99; must be at most 20",
        "homeserver.yaml:7: rc_login.adress: unknown option (its value is {'per_second': 1}); "
        "did you mean address?",
        "homeserver.yaml:9: listeners[0].port: got 'http'; want a whole number",
        "homeserver.yaml:10: listeners[0].resources[0].names[0]: got 'clients'; want one of "
        "client, "
        "federation, media, keys, health, metrics, consent, openid, static, replication",
        "homeserver.yaml:11: zzz: unknown option (its value is 1)",
    ]


def test_a_wrong_value_is_reported_once(folder: ConfigFolder) -> None:
    assert folder.errors("server_name: a.b\nlisteners: [{port: 80080}]") == [
        "homeserver.yaml:2: listeners[0].port: got 80080; must be at most 65535",
    ]


def test_bounds_are_reported_in_the_unit_of_the_option(folder: ConfigFolder) -> None:
    assert folder.errors(
        "server_name: a.b\nmedia_retention: {local_media_lifetime: 5m}\nmedia_scanning: {max_size: "
        "0}"
    ) == [
        "homeserver.yaml:2: media_retention.local_media_lifetime: got '5m'; must be at least 2h",
        "homeserver.yaml:3: media_scanning.max_size: got 0; must be at least 1",
    ]


def test_the_server_name_is_required(folder: ConfigFolder) -> None:
    assert folder.errors("bcrypt_rounds: 4") == [
        "homeserver.yaml: server_name: is required, as in example.org",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "example.org",
        "example.org:8448",
        "[2001:db8::1]:80",
        "10.0.0.1",
        "localhost",
        "xn--e1afmkfd.example",
    ],
)
def test_valid_server_names_are_accepted(folder: ConfigFolder, name: str) -> None:
    assert folder.load(f'server_name: "{name}"').config.server_name == name


@pytest.mark.parametrize(
    "name", ["@a:b", "exa mple", "example.org/", "пример.org", "a" * 250, "example.org:port"]
)
def test_invalid_server_names_are_refused(folder: ConfigFolder, name: str) -> None:
    assert "server_name" in folder.errors(f'server_name: "{name}"')[0]


@pytest.mark.parametrize(
    ("written", "complaint"),
    [
        (
            "server_name: a.b\nserver_name: c.d",
            "homeserver.yaml: line 2: server_name is already set in line 1; remove one",
        ),
        ("- a", "homeserver.yaml: line 1: a configuration has the form `key: value`"),
        ("a: [", "homeserver.yaml: line 1: expected the node content, but found '<stream end>'"),
        ("server_name: !!python/name:os.system x", "is not allowed in a configuration"),
    ],
)
def test_invalid_yaml_is_refused(folder: ConfigFolder, written: str, complaint: str) -> None:
    assert complaint in folder.errors(written)[0]


def test_exponential_aliases_are_refused(folder: ConfigFolder) -> None:
    bomb = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9))
    assert "too many values" in folder.errors(f"a0: &a0 [1]\n{bomb}")[0]


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="file not found"):
        load_config([tmp_path / "none.yaml"], {})


def test_yaml_1_1_surprises_are_text(folder: ConfigFolder) -> None:
    config = folder.load(
        "server_name: a.b\nadmin_contact: no\nturn_username: 12:30\nturn_uris: [2024-01-01, 0123, "
        "on]\n"
        "default_room_version: 10"
    ).config
    assert config.name.admin_contact == "no"
    assert config.calls.turn_username == "12:30"
    assert config.calls.turn_uris == ("2024-01-01", "0123", "on")
    assert config.rooms.default_room_version == "10"


def test_auto_join_rooms_must_be_aliases_or_ids(folder: ConfigFolder) -> None:
    rooms = ("#everyone:a.b", "!r:a.b")
    assert (
        folder.load(
            f"server_name: a.b\nauto_join_rooms: {list(rooms)}"
        ).config.registration.auto_join_rooms
        == rooms
    )
    with pytest.raises(ConfigError, match=r"auto_join_rooms: .*not 'everyone'"):
        folder.load("server_name: a.b\nauto_join_rooms: [everyone]")


def test_address_ranges_are_read(folder: ConfigFolder) -> None:
    config = folder.load(
        "server_name: a.b\nip_range_blacklist: [10.0.0.0/8, 'fe80::/10', 192.0.2.7]"
    ).config
    assert config.federation.ip_range_blacklist == ("10.0.0.0/8", "fe80::/10", "192.0.2.7")


def test_merge_keys_of_yaml_are_merged(folder: ConfigFolder) -> None:
    config = folder.load(
        "server_name: a.b\nrc_message: &many {per_second: 5, burst_count: 6}\nrc_profile: {<<: "
        "*many, burst_count: 7}"
    ).config
    assert config.limits.rc_profile == RateLimit(per_second=5, burst_count=7)


@pytest.mark.parametrize(
    "text", ["", "{}", "[{}]", '[{"endpoints": [{}]}]', '[{"endpoints": [{"url": "tube:x"}]}]']
)
def test_invalid_oembed_provider_files_are_refused(
    folder: ConfigFolder, tmp_path: Path, text: str
) -> None:
    (tmp_path / "providers.json").write_text(text)
    (wrong,) = folder.errors("server_name: a.b\noembed: {additional_providers: [providers.json]}")
    assert "providers.json" in wrong


def test_later_files_replace_keys_of_earlier_ones(folder: ConfigFolder, tmp_path: Path) -> None:
    first = folder.write(
        "homeserver.yaml", "server_name: a.b\nbcrypt_rounds: 4\nmax_upload_size: 1K"
    )
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "10-size.yaml").write_text("max_upload_size: 2K")
    (tmp_path / "conf.d" / "20-size.yaml").write_text("max_upload_size: 3K")
    config = load_config([first, tmp_path / "conf.d"], {}).config
    assert (config.sessions.bcrypt_rounds, config.storage.max_upload_size) == (4, 3072)
    (tmp_path / "conf.d" / "30-bad.yaml").write_text("\nbcrypt_rounds: many")
    with pytest.raises(ConfigError, match=r"30-bad\.yaml:2: bcrypt_rounds"):
        load_config([first, tmp_path / "conf.d"], {})


def test_secrets_are_read_from_files_and_from_the_environment(folder: ConfigFolder) -> None:
    folder.write("secret", "from the file\n")
    by_file = "server_name: a.b\nregistration_shared_secret_path: secret"
    assert folder.load(by_file).config.registration.registration_shared_secret == "from the file"
    named = {"MAHALLA_REGISTRATION_SHARED_SECRET": "from the environment"}
    assert (
        folder.load(by_file, named).config.registration.registration_shared_secret
        == "from the environment"
    )
    filed = {"MAHALLA_PASSWORD_CONFIG_PEPPER_FILE": str(folder.path / "secret")}
    assert (
        folder.load("server_name: a.b", filed).config.sessions.password_config.pepper
        == "from the file"
    )
    assert folder.errors(by_file.replace("secret_path: secret", "secret_file: nowhere")) == [
        "homeserver.yaml:2: registration_shared_secret_file: cannot read nowhere: "
        "No such file or directory"
    ]
    assert folder.errors(by_file + "\nregistration_shared_secret: x") == [
        "homeserver.yaml:2: registration_shared_secret_path: is given, "
        "and so is registration_shared_secret; one of them is enough"
    ]


def test_named_secrets_from_files_and_from_the_environment(folder: ConfigFolder) -> None:
    folder.write("clients.yaml", "calendar: from the file\n")
    by_file = "server_name: a.b\noauth:\n  introspection_clients_path: clients.yaml"
    loaded = folder.load(by_file).config.sessions.oauth.introspection_clients
    assert loaded == {"calendar": "from the file"}
    named = {"MAHALLA_OAUTH_INTROSPECTION_CLIENTS": "calendar: from the environment"}
    loaded = folder.load(by_file, named).config.sessions.oauth.introspection_clients
    assert loaded == {"calendar": "from the environment"}


@pytest.mark.parametrize("text", ["hunter2", "calendar: [hunter2]", "{calendar: hunter2"])
def test_a_malformed_named_secret_is_not_shown(folder: ConfigFolder, text: str) -> None:
    folder.write("clients.yaml", text)
    for file in (
        "server_name: a.b\noauth:\n  introspection_clients_path: clients.yaml",
        f"server_name: a.b\noauth:\n  introspection_clients: {text.replace('{', '[')}",
    ):
        errors = folder.errors(file)
        assert errors
        assert "hunter2" not in str(errors)


def test_a_path_that_cannot_be_looked_up_is_an_error_with_advice(folder: ConfigFolder) -> None:
    path = folder.path / ("a" * 300)
    with pytest.raises(ConfigError, match=r"File name too long; give its path with `--config`"):
        load_config([path], {})


def test_a_secret_is_not_shown(folder: ConfigFolder) -> None:
    (line,) = folder.errors("server_name: a.b\nregistration_shared_secret: [hunter2]")
    assert "hunter2" not in line
    config = folder.load("server_name: a.b\nregistration_shared_secret: hunter2").config
    assert "hunter2" not in repr(config)


@pytest.mark.parametrize(
    ("written", "complaint"),
    [
        ("enable_registration: true", "opens the server to anybody"),
        ("listeners: [{port: 80, path: /run/hs}]", "must have either `port` or `path`"),
        ("listeners: [{bind_addresses: [127.0.0.1]}]", "must have either `port` or `path`"),
        ("listeners: [{port: 8448, tls: true}]", "`tls` needs `tls_certificate_path`"),
        (
            'old_signing_keys: {"ed25519:a": {key: "YWJj", expired_ts: 1}}',
            "An Ed25519 key has 32 bytes, not 3",
        ),
        (
            'old_signing_keys: {"ed25519:a": {key: "§", expired_ts: 1}}',
            "is not a valid key",
        ),
        ("database: {args: {host: db}}", "SQLite takes only `database`, not host"),
        ("ip_range_blacklist: [10.0.0.0/99]", "want an address range such as 10.0.0.0/8"),
        ('default_room_version: "13"', "must be one of 1, 2, 3"),
        ("public_baseurl: matrix.example.org", "must start with https:// or http://"),
        ("listeners: 8008", "want a list"),
        ("database: sqlite3", "want a section with name"),
        ("password_config: {enabled: maybe}", "want one of true, false, only_for_reauth"),
        ("enable_metrics: 1", "want true or false"),
        ("turn_username: 1.5", "put it in quotes"),
        ("oembed: {additional_providers: [none.json]}", "oembed.additional_providers: "),
        (
            "refuse_unremovable_locations: true",
            "refuse_unremovable_locations: needs `remove_photo_locations`",
        ),
        (
            "enable_registration_captcha: true\nrecaptcha_private_key: s",
            "recaptcha_public_key: is needed",
        ),
        (
            "enable_registration_captcha: true\nrecaptcha_public_key: k",
            "recaptcha_private_key: is needed",
        ),
        ("recaptcha_siteverify_api: http://captcha.example/", "must be an https:// address"),
        (
            'recaptcha_sources: ["https://a.example; script-src *"]',
            "must be https:// addresses, not",
        ),
    ],
)
def test_invalid_values_are_refused(folder: ConfigFolder, written: str, complaint: str) -> None:
    (line,) = folder.errors(f"server_name: a.b\n{written}")
    assert complaint in line


def test_unimplemented_options_are_reported(folder: ConfigFolder) -> None:
    (notice,) = folder.notices("server_name: a.b\nredis: {host: a}")
    assert notice == "homeserver.yaml:2: redis: has no effect: not implemented yet"


def test_an_option_without_its_companion_is_reported(folder: ConfigFolder) -> None:
    base = "server_name: a.b\npublic_baseurl: https://a.b/\n"
    (notice,) = folder.notices(base + "email: {enable_notifs: true}")
    assert notice.startswith(
        "homeserver.yaml:3: email.enable_notifs: has no effect without `email.smtp_host`"
    )
    assert folder.notices(base + "email: {enable_notifs: true, smtp_host: mail.a.b}") == []
    (notice,) = folder.notices(base + "enable_metrics: true")
    assert notice.startswith("homeserver.yaml:3: enable_metrics: has no effect without a listener")


@pytest.mark.parametrize(
    "shown", ["type: metrics", "resources: [{names: [client]}, {names: [metrics]}]"]
)
def test_a_metrics_listener_without_metrics_is_reported(folder: ConfigFolder, shown: str) -> None:
    base = f"server_name: a.b\nlisteners:\n  - {{port: 8008}}\n  - {{port: 9000, {shown}}}\n"
    (notice,) = folder.notices(base)
    assert (
        notice
        == "homeserver.yaml:4: listeners[1]: serves no metrics without `enable_metrics: true`"
    )
    assert folder.notices(base + "enable_metrics: true") == []


def test_synapse_keys_contain_none_of_our_options() -> None:
    ours = {
        format_place(place)
        for kind in GROUPS.values()
        for place, _kind, _declared in iterate_options(kind)
    }
    assert not ours & set(synapse_keys())
    assert set(synapse_keys().values()) <= set(REASONS)


def test_the_first_retry_interval_must_not_exceed_the_longest(folder: ConfigFolder) -> None:
    assert folder.errors("server_name: a.b\nfederation: {destination_min_retry_interval: 2h}") == [
        "homeserver.yaml:2: federation.destination_min_retry_interval: "
        "must not be more than `destination_max_retry_interval`"
    ]
    config = (
        "server_name: a.b\nfederation: {destination_min_retry_interval: 10m, "
        "destination_max_retry_interval: 1w}"
    )
    assert folder.load(config).notices == ()


def test_contradictory_lifetimes_are_refused(folder: ConfigFolder) -> None:
    config = "\n".join(
        (
            "server_name: a.b",
            "retention:",
            "  enabled: true",
            "  default_policy: {min_lifetime: 2d, max_lifetime: 1d}",
            "  allowed_lifetime_min: 10d",
            "  allowed_lifetime_max: 1d",
            "  purge_jobs:",
            "    - {shortest_max_lifetime: 3d, longest_max_lifetime: 1d, interval: 1d}",
        )
    )
    assert folder.errors(config) == [
        "homeserver.yaml:4: retention.default_policy.min_lifetime: "
        "must not be more than `max_lifetime`",
        "homeserver.yaml:5: retention.allowed_lifetime_min: "
        "must not be more than `allowed_lifetime_max`",
        "homeserver.yaml:8: retention.purge_jobs[0].shortest_max_lifetime: "
        "must not be more than `longest_max_lifetime`",
    ]


def test_retention_rules_of_synapse_are_read(folder: ConfigFolder) -> None:
    config = (
        "server_name: a.b\nforgotten_room_retention_period: 28d\nretention: {enabled: true, "
        "default_policy: null,"
        " allowed_lifetime_min: 1d, allowed_lifetime_max: 1y, purge_jobs: null}"
    )
    assert folder.load(config).notices == ()


def test_redaction_retention_period_is_a_notice(folder: ConfigFolder) -> None:
    (notice,) = folder.notices("server_name: a.b\nredaction_retention_period: 7d")
    assert notice == (
        "homeserver.yaml:2: redaction_retention_period: has no effect: "
        "this server removes redacted content immediately"
    )
