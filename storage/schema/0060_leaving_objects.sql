-- Objects that leave are taken away in walks, in the order of their names. SQLite uses a partial index only for its very condition.
DROP INDEX media_objects_on_the_move;
CREATE INDEX media_objects_coming ON media_objects (until_ts) WHERE state = 'coming';
CREATE INDEX media_objects_leaving ON media_objects (name) WHERE state = 'leaving';
