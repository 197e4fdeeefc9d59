-- Programs that asked to be known, to sign people in by the OAuth 2.0 API
CREATE TABLE oauth_clients (
    -- made of the hash of its metadata: who registers the same again gets the same id
    client_id TEXT NOT NULL PRIMARY KEY,
    -- JSON, as it was registered
    metadata TEXT NOT NULL,
    created_ts BIGINT NOT NULL,
    last_used_ts BIGINT NOT NULL
);
CREATE INDEX oauth_clients_by_age ON oauth_clients (last_used_ts);

-- Authorization codes by the SHA-256 of their text; a used one stays until it has grown old, so that its reuse is noticed
CREATE TABLE oauth_codes (
    code_hash BYTES NOT NULL PRIMARY KEY,
    user_id TEXT NOT NULL,
    client_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    scope TEXT NOT NULL,
    redirect_uri TEXT NOT NULL,
    challenge TEXT NOT NULL,
    expires_ts BIGINT NOT NULL,
    -- the session that it was exchanged for; empty where somebody tried in vain
    used_for BYTES
) CLUSTERED;
CREATE INDEX oauth_codes_by_user ON oauth_codes (user_id);
CREATE INDEX oauth_codes_by_age ON oauth_codes (expires_ts);

-- Devices that are signed in by the OAuth 2.0 API
CREATE TABLE oauth_sessions (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    client_id TEXT NOT NULL,
    scope TEXT NOT NULL,
    -- SHA-256 of what all refresh tokens of the session begin with
    family_hash BYTES NOT NULL,
    PRIMARY KEY (user_id, device_id)
);
CREATE UNIQUE INDEX oauth_sessions_by_family ON oauth_sessions (family_hash);
CREATE INDEX oauth_sessions_by_client ON oauth_sessions (client_id);

-- Programs that wait for somebody to let them in on another device
CREATE TABLE oauth_device_grants (
    code_hash BYTES NOT NULL PRIMARY KEY,
    -- what people type
    user_code TEXT NOT NULL UNIQUE,
    client_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    scope TEXT NOT NULL,
    expires_ts BIGINT NOT NULL,
    -- milliseconds that the program has to wait between its questions, and when it asked last
    interval_ms BIGINT NOT NULL,
    asked_ts BIGINT NOT NULL,
    -- who has decided, and how: 1 allowed, 0 denied
    user_id TEXT,
    allowed INTEGER
) CLUSTERED;
CREATE INDEX oauth_device_grants_by_user ON oauth_device_grants (user_id);
CREATE INDEX oauth_device_grants_by_age ON oauth_device_grants (expires_ts);

-- Until when a user may replace their keys of cross-signing, as they allowed on the account page
CREATE TABLE cross_signing_resets (
    user_id TEXT NOT NULL PRIMARY KEY,
    until_ts BIGINT NOT NULL
);
