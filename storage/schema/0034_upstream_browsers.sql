-- JSON: the sign-in at an identity provider by which somebody came to the server's pages
ALTER TABLE browser_sessions ADD COLUMN origin TEXT;
-- 1: the device was allowed in by somebody who came so, and has not begun its session yet
ALTER TABLE upstream_sessions ADD COLUMN awaited INTEGER NOT NULL DEFAULT 0;
