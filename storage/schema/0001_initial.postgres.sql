-- Full-text search: the index of words and room in `searchable_events`
-- (storage/engine/text_index.py). The pending list is small (KiB), so that no single write has to
-- merge much of it.
CREATE INDEX searchable_text ON searchable_events USING gin (
    array_to_tsvector(
        array_remove(string_to_array(words || chr(57344) || CAST(room_nid AS TEXT), ' '), '')
    )
) WITH (gin_pending_list_limit = 256);

-- Stored without compression, so that a part is read without the rest.
ALTER TABLE one_time_key_blocks ALTER COLUMN keys SET STORAGE EXTERNAL;
ALTER TABLE to_device_log ALTER COLUMN contents SET STORAGE EXTERNAL;
