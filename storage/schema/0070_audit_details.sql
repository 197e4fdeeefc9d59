-- To whom or what it happened: an address, a provider, a program, or why somebody was refused; NULL where there is no more to say
ALTER TABLE audit_records ADD COLUMN detail TEXT;
