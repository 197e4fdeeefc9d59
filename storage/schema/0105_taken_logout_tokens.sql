-- Logout tokens of OpenID providers that were carried out, until they would be refused as too old: none counts twice.
CREATE TABLE taken_logout_tokens (
    -- SHA-256 of the provider and of what names the token
    digest BYTES NOT NULL PRIMARY KEY,
    -- ms since 1970
    until_ts BIGINT NOT NULL
);
CREATE INDEX taken_logout_tokens_by_time ON taken_logout_tokens (until_ts);
