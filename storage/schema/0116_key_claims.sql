-- A claim of one-time keys is one row, however many devices it is of, while no other process writes; what lies here goes into the marks from
-- time to time. Versions before this one know nothing of these rows, and shall not move marks beside them.

CREATE TABLE key_claims (
    -- the position at which it was made
    claim_nid ROW_NUMBER NOT NULL PRIMARY KEY,
    claimed_ts BIGINT NOT NULL,
    -- for each block of which it gave out a key its number (8 bytes), and how many of the block were given out then (2)
    marks BYTES NOT NULL
);

-- Up to where these rows have gone into the marks, in the one row that there may be. What comes before is not looked through
-- again, though PostgreSQL may have kept it: until its next vacuum, and while a backup runs.
CREATE TABLE settled_claims (
    -- always 0
    id BIGINT NOT NULL PRIMARY KEY,
    upto BIGINT NOT NULL
);

ALTER TABLE one_time_key_marks RENAME COLUMN taken TO settled;
