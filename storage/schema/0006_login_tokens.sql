-- Tokens with which a second client signs in once, for the person who asked for them on the first
CREATE TABLE login_tokens (
    token_hash BYTES NOT NULL PRIMARY KEY,
    user_id TEXT NOT NULL,
    expires_ts BIGINT NOT NULL
) CLUSTERED;
CREATE INDEX login_tokens_by_user ON login_tokens (user_id);
CREATE INDEX login_tokens_by_age ON login_tokens (expires_ts);
