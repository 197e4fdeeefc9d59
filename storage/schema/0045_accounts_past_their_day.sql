-- Accounts that are past their day, noted within a minute of it: who pushes to people leaves them out
ALTER TABLE accounts ADD COLUMN is_over INTEGER NOT NULL DEFAULT 0;
CREATE INDEX accounts_to_note_over ON accounts (expires_ts)
    WHERE expires_ts IS NOT NULL AND is_over = 0 AND deactivated_ts IS NULL;
CREATE INDEX accounts_over ON accounts (user_id) WHERE is_over = 1;
