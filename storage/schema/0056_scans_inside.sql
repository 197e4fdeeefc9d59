-- That what is inside of encrypted files was clean, oldest first: it is forgotten with time
CREATE INDEX media_scans_inside ON media_scans (scanned_ts) WHERE state = 1 AND digest <> hash;
