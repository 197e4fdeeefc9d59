-- Which administrator did it; NULL: its owner, or the server by itself
ALTER TABLE audit_records ADD COLUMN by_user TEXT;
