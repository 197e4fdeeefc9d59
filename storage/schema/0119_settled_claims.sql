-- Up to where the log of claims of one-time keys has been settled, in the one row that there may be. What comes before is not looked through
-- again, though PostgreSQL may have kept it: until its next vacuum, and while a backup runs.

CREATE TABLE settled_claims (
    -- always 0
    id BIGINT NOT NULL PRIMARY KEY,
    upto BIGINT NOT NULL
);
