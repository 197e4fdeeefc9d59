-- When an address of an account that was closed is next to be unbound (ms since 1970); NULL: the account is open
ALTER TABLE identity_bindings ADD COLUMN unbind_ts BIGINT;
-- How often that was tried in vain: the pauses between get longer
ALTER TABLE identity_bindings ADD COLUMN attempts INTEGER NOT NULL DEFAULT 0;
UPDATE identity_bindings SET unbind_ts = 0 WHERE user_id IN (SELECT user_id FROM accounts WHERE deactivated_ts IS NOT NULL);
CREATE INDEX identity_bindings_to_unbind ON identity_bindings (unbind_ts) WHERE unbind_ts IS NOT NULL;
