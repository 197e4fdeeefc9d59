-- What is deleted by age goes by the same time as what is shown: no later than when the message came. Of old ones it is not known
-- when they came: they are as old as this.
UPDATE events SET origin_server_ts = CAST(strftime('%s', 'now') AS INTEGER) * 1000 WHERE event_nid IN (
    SELECT e.event_nid FROM rooms AS r CROSS JOIN events AS e WHERE e.room_nid = r.room_nid AND e.state_key IS NULL
        AND (e.flags & 2048) <> 2048 AND e.origin_server_ts > CAST(strftime('%s', 'now') AS INTEGER) * 1000
);
