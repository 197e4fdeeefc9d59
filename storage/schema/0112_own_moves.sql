-- Who came, went, or changed their name by themselves, in the order of the stream: the sender to other servers follows them.
CREATE INDEX events_own_moves ON events (position) WHERE type = 'm.room.member' AND state_key = sender;
