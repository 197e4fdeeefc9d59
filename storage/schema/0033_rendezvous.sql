-- What two devices tell each other while one signs the other in: the last word of either
CREATE TABLE rendezvous (
    id_hash BYTES NOT NULL PRIMARY KEY,
    data BYTES NOT NULL,
    -- changes with each write
    revision TEXT NOT NULL,
    written_ts BIGINT NOT NULL,
    expires_ts BIGINT NOT NULL
) CLUSTERED;
CREATE INDEX rendezvous_by_age ON rendezvous (expires_ts);
