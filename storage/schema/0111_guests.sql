-- Guests are few, and looked for: who is in a room that takes none has to go.

CREATE INDEX accounts_guests ON accounts (user_id) WHERE is_guest = 1;
