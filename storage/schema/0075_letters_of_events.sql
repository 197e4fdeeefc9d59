-- Letters about what people missed have its text: they go when it goes

-- of whose letters this is one, and up to where the one before had told; NULL: it is another letter
ALTER TABLE outgoing_mail ADD COLUMN pusher_nid BIGINT;
ALTER TABLE outgoing_mail ADD COLUMN told_position BIGINT;

CREATE TABLE outgoing_mail_events (
    event_nid BIGINT NOT NULL,
    mail_nid BIGINT NOT NULL,
    PRIMARY KEY (event_nid, mail_nid)
) CLUSTERED;
CREATE INDEX outgoing_mail_events_by_mail ON outgoing_mail_events (mail_nid);
