-- Copies of files of other servers. The bytes are in the same folder as those of this server's users, by their hash.
CREATE TABLE remote_media (
    -- the server whose file it is, and its id there
    origin TEXT NOT NULL,
    media_id TEXT NOT NULL,
    -- SHA-256 of the content
    hash BYTES NOT NULL,
    type TEXT NOT NULL,
    size BIGINT NOT NULL,
    -- the file's name, if the other server said one
    name TEXT,
    -- when it was fetched, in milliseconds since 1970
    created_ts BIGINT NOT NULL,
    -- to about an hour
    last_access_ts BIGINT NOT NULL,
    -- 1: only for those who show a token
    authenticated INTEGER NOT NULL,
    -- 1: given to nobody, and kept so that it is not fetched again
    quarantined INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (origin, media_id)
);
CREATE INDEX remote_media_by_hash ON remote_media (hash);
CREATE INDEX remote_media_by_access ON remote_media (last_access_ts) WHERE quarantined = 0;
