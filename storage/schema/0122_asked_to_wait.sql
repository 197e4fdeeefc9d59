-- Until when a server has asked, by its last answer, to be sent nothing; 0: that was another one, or none
ALTER TABLE destinations ADD COLUMN asked_until_ts BIGINT NOT NULL DEFAULT 0;
-- 2: an operator says so, who is believed more than the server
DROP INDEX destinations_heard;
CREATE INDEX destinations_heard ON destinations (server) WHERE is_heard > 0;
