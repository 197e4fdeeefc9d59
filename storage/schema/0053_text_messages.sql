-- How often a code was typed that was wrong
ALTER TABLE threepid_validations ADD COLUMN tries INTEGER NOT NULL DEFAULT 0;

-- Text messages that were sent on a day
CREATE TABLE text_messages_sent (
    -- since 1970, in UTC
    day BIGINT NOT NULL PRIMARY KEY,
    messages BIGINT NOT NULL
);
