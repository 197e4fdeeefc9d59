-- What was said in the threads of rooms since some position
CREATE INDEX events_in_threads ON events (room_nid, position, event_nid) WHERE thread_root IS NOT NULL;
