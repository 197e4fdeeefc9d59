-- Previews of linked pages.
CREATE TABLE url_previews (
    -- as it is asked for, without fragment
    url TEXT NOT NULL PRIMARY KEY,
    -- what clients are told, as JSON; NULL: it could not be had
    body TEXT,
    -- the picture, a file of nobody's
    media_id TEXT,
    -- until when it is given out, in milliseconds since 1970
    expires_ts BIGINT NOT NULL
);
CREATE INDEX url_previews_by_expiry ON url_previews (expires_ts);
CREATE INDEX url_previews_by_media ON url_previews (media_id) WHERE media_id IS NOT NULL;
-- All pictures of previews, those too whose preview has another by now: they go a while later.
CREATE TABLE preview_pictures (
    media_id TEXT NOT NULL PRIMARY KEY,
    made_ts BIGINT NOT NULL
);
CREATE INDEX preview_pictures_by_time ON preview_pictures (made_ts);
