-- Messages that were purged since nobody here remembered their room: the bit 4096 of `flags`. Who comes into the room again may have
-- them from other servers
CREATE INDEX forgotten_by_depth ON events (room_nid, depth, event_nid) WHERE (flags & 4096) <> 0;
