-- When the event had its content back: a day later every node has read it anew, and the row goes
ALTER TABLE restored_contents ADD COLUMN restored_ts BIGINT NOT NULL DEFAULT 0;
CREATE INDEX restored_contents_by_time ON restored_contents (restored_ts);
