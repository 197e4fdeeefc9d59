-- What the policy servers of rooms have said of events of others, until these have their place: so it is asked for once
CREATE TABLE policy_judgements (
    room_nid BIGINT NOT NULL,
    -- by which the room knows its policy server
    public_key BYTES NOT NULL,
    event_id TEXT NOT NULL,
    allowed INTEGER NOT NULL,
    judged_ts BIGINT NOT NULL,
    PRIMARY KEY (room_nid, public_key, event_id)
) CLUSTERED;
CREATE INDEX policy_judgements_of_room ON policy_judgements (room_nid, judged_ts);
CREATE INDEX policy_judgements_by_age ON policy_judgements (judged_ts);
