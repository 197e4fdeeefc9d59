-- The day, counted from 1970, on which the filter was last uploaded or used: those that were not used for longest go first
ALTER TABLE filters ADD COLUMN used_day BIGINT NOT NULL DEFAULT 0;
