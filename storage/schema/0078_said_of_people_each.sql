-- Two hashes instead of one, so that only what changes is taken over: what was said before is noted anew at the next look
ALTER TABLE external_ids RENAME COLUMN said TO said_addresses;
UPDATE external_ids SET said_addresses = NULL WHERE said_addresses IS NOT NULL;
ALTER TABLE external_ids ADD COLUMN said_name TEXT;
