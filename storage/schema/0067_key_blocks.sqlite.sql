-- One-time keys as they were uploaded together, many in one row, given out from the first on: an upload of fifty keys is one row, and
-- a claim changes one row.

CREATE TABLE one_time_key_blocks (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    algorithm TEXT NOT NULL,
    -- order of upload
    block_nid BIGINT NOT NULL,
    -- how many there were, and how many of them were given out
    number INTEGER NOT NULL,
    taken INTEGER NOT NULL,
    -- 1: all of them
    used_up INTEGER NOT NULL,
    -- when the latest was given out; 0: none was
    claimed_ts BIGINT NOT NULL,
    -- bytes of one key in `keys`; 0: it was given out before there were blocks, and `keys` is the digest of its content
    width INTEGER NOT NULL,
    -- their ids, a JSON array
    names TEXT NOT NULL,
    -- each "ID":CONTENT in JSON, with spaces up to the width
    keys BYTES NOT NULL,
    PRIMARY KEY (user_id, device_id, algorithm, block_nid)
);
CREATE INDEX one_time_key_blocks_left ON one_time_key_blocks (user_id, device_id, algorithm, block_nid) WHERE used_up = 0;

-- What is remembered of keys that were given out, of blocks that were used up.
CREATE TABLE used_one_time_keys (
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    -- of each, the latest last: when it was given out, in milliseconds since 1970, in 8 bytes; a digest in 16
    used BYTES NOT NULL,
    PRIMARY KEY (user_id, device_id)
);

INSERT INTO one_time_key_blocks
    SELECT user_id, device_id, algorithm, key_nid, 1, 0, 0, 0,
        length(CAST(json_quote(key_id) || ':' || CAST(content AS TEXT) AS BLOB)), json_array(key_id),
        CAST(json_quote(key_id) || ':' || CAST(content AS TEXT) AS BLOB)
    FROM one_time_keys;
INSERT INTO one_time_key_blocks
    SELECT user_id, device_id, algorithm, -row_number() OVER (ORDER BY claimed_ts), 1, 1, 1, claimed_ts, 0,
        json_array(key_id), digest
    FROM claimed_one_time_keys;
DROP TABLE one_time_keys;
DROP TABLE claimed_one_time_keys;
