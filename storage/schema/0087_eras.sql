-- How often all that somebody had proved to be was ended: by a new password, a sign-out everywhere, a lock, the end of the account
ALTER TABLE accounts ADD COLUMN era BIGINT NOT NULL DEFAULT 0;
