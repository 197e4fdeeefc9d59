-- What happened to accounts, so that their owners and administrators can look it up
CREATE TABLE audit_records (
    record_nid ROW_NUMBER NOT NULL PRIMARY KEY,
    user_id TEXT NOT NULL,
    ts BIGINT NOT NULL,
    -- what happened: a word of the service
    event TEXT NOT NULL,
    -- whence; the network of an address of IPv6
    address TEXT,
    device_id TEXT
);
CREATE INDEX audit_records_by_user ON audit_records (user_id, ts);
CREATE INDEX audit_records_by_age ON audit_records (ts);
