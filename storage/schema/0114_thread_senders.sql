-- Who said something in which thread: what follows from `relations`, so that threads are counted and listed without a look at all of them

CREATE TABLE thread_senders (
    -- id of the root, which need not be known
    target TEXT NOT NULL,
    room_nid BIGINT NOT NULL,
    sender TEXT NOT NULL,
    -- how many events, at least one
    count BIGINT NOT NULL,
    -- the latest of them in the order of the room
    depth BIGINT NOT NULL,
    event_nid BIGINT NOT NULL,
    PRIMARY KEY (target, room_nid, sender)
) CLUSTERED;
INSERT INTO thread_senders (target, room_nid, sender, count, depth, event_nid)
    SELECT target, room_nid, sender, number, depth, event_nid FROM (
        SELECT target, room_nid, sender, depth, event_nid, count(*) OVER (PARTITION BY target, room_nid, sender) AS number,
            row_number() OVER (PARTITION BY target, room_nid, sender ORDER BY depth DESC, event_nid DESC) AS place
        FROM relations WHERE rel_type = 'm.thread'
    ) AS children WHERE place = 1;
CREATE INDEX thread_senders_by_latest ON thread_senders (room_nid, depth, event_nid);

-- The latest edits of an event, of those that are valid
CREATE INDEX relations_by_edit ON relations (target, room_nid, sender, type, origin_server_ts, event_id)
    WHERE rel_type = 'm.replace' AND is_whole = 1;
