-- What scanners have said of files, and which files wait for it.
CREATE TABLE media_scans (
    -- SHA-256 of a content; or, of what is inside of an encrypted one, a hash of that with the key that opens it
    digest BYTES NOT NULL PRIMARY KEY,
    -- SHA-256 of the content
    hash BYTES NOT NULL,
    -- 0 nothing is known yet, 1 clean, 2 harmful, 3 found harmful, and an administrator has given it free
    state INTEGER NOT NULL,
    -- which scanners have said it, with which signatures
    version TEXT NOT NULL,
    -- milliseconds since 1970
    scanned_ts BIGINT NOT NULL,
    -- which scanner has found what
    found TEXT,
    -- of what is inside of an encrypted file: who showed its key when it was found
    by_user_id TEXT,
    -- whether a job is to scan it: 0 no, 1 once more, 2 for the first time
    wanted INTEGER NOT NULL,
    -- not before this moment: somebody is at it, or could not do it
    until_ts BIGINT NOT NULL
);
CREATE INDEX media_scans_wanted ON media_scans (wanted, until_ts) WHERE wanted > 0;
CREATE INDEX media_scans_by_hash ON media_scans (hash);
CREATE INDEX media_scans_found ON media_scans (scanned_ts) WHERE state >= 2;
