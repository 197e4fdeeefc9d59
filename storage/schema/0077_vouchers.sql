-- In the place of `vouched_by`: all the identity providers (`provider` of `external_ids`) that say that an address is the user's. It goes with
-- the last of them; one of which none says so was confirmed by the user, or an administrator, or is from before this was noted
CREATE TABLE threepid_vouchers (
    medium TEXT NOT NULL,
    address TEXT NOT NULL,
    provider TEXT NOT NULL,
    PRIMARY KEY (medium, address, provider)
) CLUSTERED;
INSERT INTO threepid_vouchers (medium, address, provider)
    SELECT medium, address, vouched_by FROM threepids WHERE vouched_by IS NOT NULL;
ALTER TABLE threepids DROP COLUMN vouched_by;
