-- Many messages to devices that were sent at once, until those that nobody has fetched go into a row each.
CREATE TABLE to_device_log (
    -- the position of the first; the others follow upon it
    first_position INTEGER NOT NULL PRIMARY KEY,
    sent_ts BIGINT NOT NULL,
    -- for each message the number of its device (8 bytes, the lowest first), then for each where its content begins and then for each how
    -- long it is (4 bytes); several may have the same
    devices BLOB NOT NULL,
    -- how all of them begin: type, sender
    opening BLOB NOT NULL,
    contents BLOB NOT NULL
);
-- whether a device is still there
CREATE INDEX devices_by_number ON devices (device_nid);
