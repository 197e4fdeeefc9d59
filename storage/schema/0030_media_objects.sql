-- Contents in an object store, such as S3. An object's name is never used again, so that who takes one away cannot meet who
-- writes one. A row is there before its object, and as long as it.
CREATE TABLE media_objects (
    name TEXT NOT NULL PRIMARY KEY,
    -- SHA-256 of the content
    hash BYTES NOT NULL,
    size BIGINT NOT NULL,
    -- 'coming': somebody writes it; 'here'; 'leaving': nobody has it any more
    state TEXT NOT NULL,
    -- until when who writes it will be done, or says so again (milliseconds since 1970); it stays with one that leaves unfinished. Else 0
    until_ts BIGINT NOT NULL
);
CREATE INDEX media_objects_by_hash ON media_objects (hash);
CREATE INDEX media_objects_on_the_move ON media_objects (until_ts) WHERE state <> 'here';
