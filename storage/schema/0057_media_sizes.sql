-- With the sizes, so that what a user has uploaded is summed up without looking at the files themselves
DROP INDEX media_by_user;
CREATE INDEX media_by_user ON media (user_id, created_ts, size);
