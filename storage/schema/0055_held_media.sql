-- What administrators hold back, also when no file has it any more, or none yet

-- SHA-256 of contents
CREATE TABLE held_contents (
    hash BYTES NOT NULL PRIMARY KEY
);
INSERT INTO held_contents (hash)
SELECT DISTINCT hash FROM (
    SELECT hash, quarantined_by FROM media WHERE quarantined = 1 AND hash IS NOT NULL
    UNION ALL
    SELECT hash, quarantined_by FROM remote_media WHERE quarantined = 1
) AS held
WHERE quarantined_by IS NULL OR quarantined_by NOT IN ('system', 'scanner');

-- Files of other servers of which there is no copy yet
CREATE TABLE held_addresses (
    origin TEXT NOT NULL,
    media_id TEXT NOT NULL,
    -- the administrator
    by_user_id TEXT NOT NULL,
    PRIMARY KEY (origin, media_id)
);
