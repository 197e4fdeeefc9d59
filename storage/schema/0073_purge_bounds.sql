-- A purge takes nothing that came after it had begun

-- the number of the newest event when it began: what has a higher one stays
ALTER TABLE history_purges ADD COLUMN upto_nid BIGINT NOT NULL DEFAULT 0;
UPDATE history_purges SET upto_nid = COALESCE((SELECT MAX(event_nid) FROM events), 0) WHERE finished_ts IS NULL;
