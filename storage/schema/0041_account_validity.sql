-- Accounts that are good until a day, and the letters by which people renew them
ALTER TABLE accounts ADD COLUMN expires_ts BIGINT;
-- the letter about this end: 0 is to be written, 1 was written, 2 is not wanted, 3 had no address to go to
ALTER TABLE accounts ADD COLUMN renewal_letter INTEGER NOT NULL DEFAULT 0;
CREATE INDEX accounts_without_end ON accounts (user_id)
    WHERE expires_ts IS NULL AND deactivated_ts IS NULL AND is_guest = 0 AND appservice_id IS NULL;
CREATE INDEX accounts_by_end ON accounts (expires_ts) WHERE renewal_letter = 0 AND deactivated_ts IS NULL;

-- The link in the last letter to each account, by the SHA-256 of its secret
CREATE TABLE renewal_links (
    user_id TEXT NOT NULL PRIMARY KEY,
    token_hash BYTES NOT NULL,
    -- NULL while it was not used
    used_ts BIGINT
) CLUSTERED;
CREATE UNIQUE INDEX renewal_links_by_token ON renewal_links (token_hash);
