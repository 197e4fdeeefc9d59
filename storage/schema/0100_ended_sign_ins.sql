-- Sign-ins at providers that ended there minutes ago: what was under way by one of them comes to nothing. `sign_in`: as in `login_tokens`, or
-- the beginning of such, with a dot at its end, or the provider alone; `subject`: the person whom the provider named with it, empty where it named none
CREATE TABLE ended_sign_ins (
    sign_in TEXT NOT NULL,
    subject TEXT NOT NULL,
    ended_ts BIGINT NOT NULL,
    PRIMARY KEY (sign_in, subject)
);
CREATE INDEX ended_sign_ins_by_time ON ended_sign_ins (ended_ts);
-- As in `login_tokens`: by what a sign-in that waits is found when it ends at the provider; null before it is known whose it is
ALTER TABLE upstream_flows ADD COLUMN sign_in TEXT;
CREATE INDEX upstream_flows_by_sign_in ON upstream_flows (sign_in) WHERE sign_in IS NOT NULL;
-- The same for who has signed in: the provider, a space, and the person
ALTER TABLE upstream_flows ADD COLUMN person TEXT;
CREATE INDEX upstream_flows_by_person ON upstream_flows (person) WHERE person IS NOT NULL;
CREATE INDEX upstream_flows_by_browser ON upstream_flows (browser_hash);
-- In which era of the account a token was given
ALTER TABLE login_tokens ADD COLUMN era BIGINT NOT NULL DEFAULT 0;
UPDATE login_tokens SET era = (SELECT a.era FROM accounts a WHERE a.user_id = login_tokens.user_id)
    WHERE user_id IN (SELECT user_id FROM accounts);
