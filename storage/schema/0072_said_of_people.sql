-- Hash of the name and the addresses that a directory had of the person when they were last taken over; NULL where that is not known
ALTER TABLE external_ids ADD COLUMN said TEXT;
