-- What is deleted by age goes by the same time as what is shown: no later than when the message came. Of old ones it is not known
-- when they came: they are as old as this.
UPDATE events SET origin_server_ts = CAST(FLOOR(EXTRACT(EPOCH FROM now()) * 1000) AS BIGINT) WHERE event_nid IN (
    SELECT e.event_nid FROM rooms AS r JOIN events AS e ON e.room_nid = r.room_nid WHERE e.state_key IS NULL
        AND (e.flags & 2048) <> 2048 AND e.origin_server_ts > CAST(FLOOR(EXTRACT(EPOCH FROM now()) * 1000) AS BIGINT)
);
