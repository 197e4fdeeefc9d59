-- Presence, tokens that prove to others who somebody is, events that are to be sent later

-- How people were last there: written when it changes, so that a restart forgets nobody's status
CREATE TABLE presence_states (
    user_id TEXT NOT NULL PRIMARY KEY,
    -- online, unavailable or offline
    state TEXT NOT NULL,
    status_msg TEXT,
    -- milliseconds since 1970
    last_active_ts BIGINT,
    -- of the ephemeral counter: when it was told that they are so; 0: that is yet to be done
    position BIGINT NOT NULL
);
CREATE INDEX presence_states_there ON presence_states (user_id) WHERE state <> 'offline';
CREATE INDEX presence_states_by_position ON presence_states (position);

CREATE TABLE openid_tokens (
    -- SHA-256 of the token
    token_hash BYTES NOT NULL PRIMARY KEY,
    user_id TEXT NOT NULL,
    expires_ts BIGINT NOT NULL
);
CREATE INDEX openid_tokens_by_end ON openid_tokens (expires_ts);
CREATE INDEX openid_tokens_by_user ON openid_tokens (user_id);

-- Events that are to be sent later, and for some time those that were
CREATE TABLE delayed_events (
    -- who knows it may manage the event
    delay_id TEXT NOT NULL PRIMARY KEY,
    user_id TEXT NOT NULL,
    -- '' for a token without a device
    device_id TEXT NOT NULL,
    -- of the application service that scheduled it
    appservice_id TEXT,
    room_id TEXT NOT NULL,
    type TEXT NOT NULL,
    -- NULL for what is no state
    state_key TEXT,
    -- JSON
    content BYTES NOT NULL,
    -- what an application service said of when it happened
    origin_server_ts BIGINT,
    delay_ms BIGINT NOT NULL,
    -- when the delay began
    running_since BIGINT NOT NULL,
    -- when it is to be sent; NULL once it was sent or cancelled
    send_ts BIGINT,
    -- until when somebody has taken it upon themselves to send it
    leased_until BIGINT NOT NULL,
    -- when it was sent or cancelled
    finalised_ts BIGINT,
    -- send or cancel
    outcome TEXT,
    -- action, delay or error: what brought that about
    reason TEXT,
    event_id TEXT,
    -- why it could not be sent, as a JSON error
    error BYTES
);
CREATE INDEX delayed_events_by_time ON delayed_events (send_ts) WHERE send_ts IS NOT NULL;
CREATE INDEX delayed_events_by_user ON delayed_events (user_id, finalised_ts);
CREATE INDEX delayed_events_by_end ON delayed_events (finalised_ts) WHERE finalised_ts IS NOT NULL;
