-- Since when an account waits for an administrator to approve it; NULL: it need not wait (any more)
ALTER TABLE accounts ADD COLUMN awaiting_ts BIGINT;
-- what its owner wants to read, as in Accept-Language, for the letter that tells them
ALTER TABLE accounts ADD COLUMN awaiting_languages TEXT;
CREATE INDEX accounts_awaiting ON accounts (awaiting_ts, user_id) WHERE awaiting_ts IS NOT NULL;
