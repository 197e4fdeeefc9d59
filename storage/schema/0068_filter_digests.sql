-- Filters are found by a digest (SHA-256) of what they say: an index of PostgreSQL takes no entry of more than 2.7 kB. Those
-- from before have none; uploaded again, they get another number.
DROP INDEX filters_by_definition;
ALTER TABLE filters ADD COLUMN digest BYTES;
CREATE UNIQUE INDEX filters_by_digest ON filters (user_id, digest);
