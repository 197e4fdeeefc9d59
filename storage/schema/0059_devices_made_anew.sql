-- A device that is removed and comes again under the same id is another one: its transaction ids begin anew.
-- When it was made, in milliseconds since 1970; 0 for the devices that were there before this column.
ALTER TABLE devices ADD COLUMN made_ts BIGINT NOT NULL DEFAULT 0;
