-- Passwords that people make for one program each, which cannot sign in otherwise
CREATE TABLE application_passwords (
    -- stands in the password too, so that one hash is tried at a sign-in, not all of an account's
    password_id TEXT NOT NULL PRIMARY KEY,
    user_id TEXT NOT NULL,
    -- as its owner calls it
    name TEXT NOT NULL,
    password_hash TEXT NOT NULL,
    created_ts BIGINT NOT NULL,
    expires_ts BIGINT,
    -- the last sign-in with it
    used_ts BIGINT
) CLUSTERED;
CREATE UNIQUE INDEX application_passwords_by_user ON application_passwords (user_id, name);
CREATE INDEX application_passwords_by_end ON application_passwords (expires_ts) WHERE expires_ts IS NOT NULL;

-- Which sessions were begun with which of them
CREATE TABLE application_sessions (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    password_id TEXT NOT NULL,
    PRIMARY KEY (user_id, device_id)
) CLUSTERED;
