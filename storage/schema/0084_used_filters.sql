-- When the filter was last uploaded or used, in milliseconds, as far as that is noted, and whether it was used since it was first uploaded:
-- those that were not go first, and then those that were not used for longest. Those of before are taken as used
ALTER TABLE filters ADD COLUMN touched_ts BIGINT NOT NULL DEFAULT 0;
ALTER TABLE filters ADD COLUMN is_used INTEGER NOT NULL DEFAULT 1;
