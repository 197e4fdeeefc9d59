-- Files of this server's users, and ids that are reserved for files to come. The bytes are in a folder, by their hash.
CREATE TABLE media (
    media_id TEXT NOT NULL PRIMARY KEY,
    -- who uploaded it, or reserved the id
    user_id TEXT NOT NULL,
    -- SHA-256 of the content; NULL while the id is only reserved
    hash BYTES,
    type TEXT NOT NULL,
    size BIGINT NOT NULL,
    -- the file's name, if the uploader gave one
    name TEXT,
    -- milliseconds since 1970
    created_ts BIGINT NOT NULL,
    -- when a reservation ends; NULL once the file is there
    expires_ts BIGINT,
    -- to about an hour
    last_access_ts BIGINT NOT NULL,
    -- 1: only for those who show a token
    authenticated INTEGER NOT NULL,
    -- 1: given to nobody
    quarantined INTEGER NOT NULL DEFAULT 0,
    -- 1: may not be quarantined or removed by age
    protected INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX media_by_user ON media (user_id, created_ts);
CREATE INDEX media_by_hash ON media (hash);
CREATE INDEX media_reserved ON media (expires_ts, user_id) WHERE expires_ts IS NOT NULL;
