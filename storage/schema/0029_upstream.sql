-- People who prove elsewhere who they are: their accounts here, and sign-ins that are under way

-- Whom a provider (of the configuration) knows by which account of ours
CREATE TABLE external_ids (
    provider TEXT NOT NULL,
    -- who it is for the provider; never changes there
    subject TEXT NOT NULL,
    user_id TEXT NOT NULL,
    linked_ts BIGINT NOT NULL,
    -- since when the account is locked because the directory has this person no more
    left_ts BIGINT,
    PRIMARY KEY (provider, subject)
) CLUSTERED;
CREATE UNIQUE INDEX external_ids_by_user ON external_ids (user_id, provider);

-- Sign-ins that are under way, each at one step
CREATE TABLE upstream_flows (
    flow_id TEXT NOT NULL PRIMARY KEY,
    step TEXT NOT NULL,
    -- hash of the cookie of the browser that may go on with it
    browser_hash BYTES NOT NULL,
    expires_ts BIGINT NOT NULL,
    -- JSON
    content TEXT NOT NULL
) CLUSTERED;
CREATE INDEX upstream_flows_by_age ON upstream_flows (expires_ts);

-- Which sign-in at a provider a device was signed in with, for providers that say when somebody signs out
CREATE TABLE upstream_sessions (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    provider TEXT NOT NULL,
    subject TEXT NOT NULL,
    -- the provider's name for the sign-in, where it has one
    session TEXT,
    PRIMARY KEY (user_id, device_id)
) CLUSTERED;
CREATE INDEX upstream_sessions_by_subject ON upstream_sessions (provider, subject);
CREATE INDEX upstream_sessions_by_session ON upstream_sessions (provider, session);

-- JSON: the sign-in at a provider that a token stands for
ALTER TABLE login_tokens ADD COLUMN origin TEXT;

-- SAML assertions that were taken, so that none is taken twice
CREATE TABLE taken_assertions (
    assertion_id TEXT NOT NULL PRIMARY KEY,
    expires_ts BIGINT NOT NULL
) CLUSTERED;
CREATE INDEX taken_assertions_by_age ON taken_assertions (expires_ts);
