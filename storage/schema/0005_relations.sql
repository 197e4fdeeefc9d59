-- Which event relates to which: a row for each event that stands in a timeline, is not redacted and names a parent

CREATE TABLE relations (
    -- id of the parent, which need not be known
    target TEXT NOT NULL,
    rel_type TEXT NOT NULL,
    -- the child
    depth BIGINT NOT NULL,
    event_nid BIGINT NOT NULL,
    event_id TEXT NOT NULL,
    room_nid BIGINT NOT NULL,
    type TEXT NOT NULL,
    sender TEXT NOT NULL,
    origin_server_ts BIGINT NOT NULL,
    -- what an annotation says
    annotation TEXT,
    -- 0 for a replacement that has nothing to put in the place of what it replaces
    is_whole INTEGER NOT NULL,
    PRIMARY KEY (target, rel_type, depth, event_nid)
) CLUSTERED;
CREATE INDEX relations_by_event ON relations (event_nid);
CREATE INDEX relations_by_thread ON relations (room_nid, depth, event_nid) WHERE rel_type = 'm.thread';
