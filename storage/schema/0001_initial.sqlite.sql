-- Full-text search: the index of `searchable_events.words`, by event_nid
-- (storage/engine/text_index.py). It has no content of its own and is a table of the FTS5 module.
CREATE VIRTUAL TABLE searchable_text USING fts5 (
    words, content = '', detail = none, columnsize = 0, tokenize = 'ascii'
);
