-- Events of states that other servers told, which could not be checked, since keys were not to be had with which they, or what
-- they rest on, are signed: put in once they are proved
CREATE TABLE unproved_state (
    room_nid BIGINT NOT NULL,
    event_id TEXT NOT NULL,
    depth BIGINT NOT NULL,
    -- as it came
    pdu BYTES NOT NULL,
    -- 0: only others of these rest on it; 1: it is of a state of a time before all of ours had left the room; 2: of the state at some
    -- event; 3: of the state before our join
    part_of INTEGER NOT NULL,
    -- its number, once it was proved and has been put in
    event_nid BIGINT,
    attempts INTEGER NOT NULL DEFAULT 0,
    -- when it is tried next, in milliseconds
    next_attempt BIGINT NOT NULL,
    PRIMARY KEY (room_nid, event_id)
) CLUSTERED;
