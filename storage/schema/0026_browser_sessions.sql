-- Browsers in which somebody is signed in to the server's own pages, by the SHA-256 of their cookie
CREATE TABLE browser_sessions (
    token_hash BYTES NOT NULL PRIMARY KEY,
    user_id TEXT NOT NULL,
    -- when its owner last proved who they are
    proved_ts BIGINT NOT NULL,
    expires_ts BIGINT NOT NULL
) CLUSTERED;
CREATE INDEX browser_sessions_by_user ON browser_sessions (user_id);
CREATE INDEX browser_sessions_by_age ON browser_sessions (expires_ts);
