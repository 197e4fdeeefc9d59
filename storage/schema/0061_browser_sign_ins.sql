-- What the identity provider calls the sign-in by which somebody came (`session` of `origin`): by it they are found when they sign out
-- there
ALTER TABLE browser_sessions ADD COLUMN session TEXT;
-- Whose cookies are of before cookies were signed: nobody comes with one of them any more
DELETE FROM browser_sessions;
CREATE INDEX browser_sessions_by_session ON browser_sessions (session) WHERE session IS NOT NULL;
