-- How often in a row a content could not be scanned, while others could: the pauses between get longer
ALTER TABLE media_scans ADD COLUMN failures INTEGER NOT NULL DEFAULT 0;
