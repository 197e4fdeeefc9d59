-- What was confirmed ends with the era of the account
CREATE INDEX uia_sessions_by_user ON uia_sessions (user_id) WHERE user_id IS NOT NULL;
