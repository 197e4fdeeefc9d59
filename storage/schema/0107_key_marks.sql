-- How far the blocks of one-time keys are given out stands apart from the keys: a claim writes a few bytes for each device, and not a part
-- of a long row.

CREATE TABLE one_time_key_marks (
    -- of `one_time_key_blocks`: each has one
    block_nid ROW_NUMBER NOT NULL PRIMARY KEY,
    -- when the latest of its keys was given out; 0: none was
    claimed_ts BIGINT NOT NULL,
    -- how many of them were
    taken INTEGER NOT NULL
) ROOMY;
INSERT INTO one_time_key_marks (block_nid, claimed_ts, taken)
    SELECT block_nid, claimed_ts, taken FROM one_time_key_blocks;
ALTER TABLE one_time_key_blocks DROP COLUMN claimed_ts;
ALTER TABLE one_time_key_blocks DROP COLUMN taken;
