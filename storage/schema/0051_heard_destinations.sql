-- 1: a node that does not send to other servers has heard from this one, which could not be reached
ALTER TABLE destinations ADD COLUMN is_heard INTEGER NOT NULL DEFAULT 0;
CREATE INDEX destinations_heard ON destinations (server) WHERE is_heard = 1;
