-- What a node leaves undone that ends without a word, others take up after a while; and what fails for now is tried again

-- until when somebody is at it, in milliseconds since 1970
ALTER TABLE arriving_accounts ADD COLUMN due_ts BIGINT NOT NULL DEFAULT 0;

-- when somebody is to go on with what was there at the time, in milliseconds since 1970; NULL once all of it has been redacted
ALTER TABLE related_redactions ADD COLUMN due_ts BIGINT;
-- how often that was in vain, one after the other
ALTER TABLE related_redactions ADD COLUMN tries INTEGER NOT NULL DEFAULT 0;
-- 1 where it takes along only what its sender has sent
ALTER TABLE related_redactions ADD COLUMN only_own INTEGER NOT NULL DEFAULT 0;
UPDATE related_redactions SET due_ts = 0 WHERE finished = 0;
DROP INDEX related_redactions_unfinished;
ALTER TABLE related_redactions DROP COLUMN finished;
CREATE INDEX related_redactions_due ON related_redactions (due_ts) WHERE due_ts IS NOT NULL;
