-- Documents that others signed and that this server goes by: the last good one of each purpose

CREATE TABLE signed_documents (
    purpose TEXT NOT NULL PRIMARY KEY,
    document BYTES NOT NULL,
    -- milliseconds
    fetched_at BIGINT NOT NULL
);
