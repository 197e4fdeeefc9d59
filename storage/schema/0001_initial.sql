-- The schema of a Mahalla database: one text for SQLite and PostgreSQL.
--
-- The full-text index and some settings of PostgreSQL are in `0001_initial.sqlite.sql` and
-- `0001_initial.postgres.sql`. The words in capitals that are not SQL (BYTES, ROWID,
-- CLUSTERED, LOW_FILLFACTOR) are explained in storage/engine/migrate.py, which also creates
-- `schema_version`.
--
-- Conventions:
-- - `…_nid` is an internal number that stands for a long identifier. Clients see few of
--   them, for example inside tokens. Tables refer to each other by these numbers and by Matrix
--   identifiers. There are no foreign keys, so that `copy-database` may copy tables in any order.
-- - `position` is a number in the one sequence of changes (storage/engine/streams.py), unless its
--   comment names another stream.
-- - `…_ts`, `…_until` and other times are milliseconds since 1970, UTC; `…_ms` is a duration in
--   milliseconds.
-- - Truth values are INTEGER: 0 or 1.
-- - Text that may contain U+0000, or has to be returned exactly, is BYTES.
-- - A local user is one of this server, a remote user one of another server. "None" and "unknown"
--   are NULL or '' as the comment of the column says. A column without such a word is always set.


----------------------------------------------------------------------------------------------------
-- The database itself
----------------------------------------------------------------------------------------------------

-- The last number of each counter. Every internal number (`_nid`) and every stream position comes
-- from here; database sequences are not used.
CREATE TABLE counters (
    -- Name of the counter. `position` is the one sequence of stream positions; others number rooms,
    -- events, devices and so on.
    name TEXT NOT NULL PRIMARY KEY,
    -- The last number that was taken.
    value BIGINT NOT NULL
) CLUSTERED;

-- Progress of background jobs, so that a job continues after a restart. Written by
-- storage/cluster/job_progress.py.
CREATE TABLE jobs (
    -- Name of the job.
    name TEXT NOT NULL PRIMARY KEY,
    -- The progress in the job's own format, mostly JSON.
    progress TEXT NOT NULL
);

-- Work that usually one node does at a time, such as sending to other servers. Written by
-- storage/cluster/leases.py.
CREATE TABLE leases (
    -- Name of the work.
    name TEXT NOT NULL PRIMARY KEY,
    -- The node that has the lease, or had it last.
    holder TEXT NOT NULL,
    -- Time at which the lease ends unless the holder renews it.
    expires_ts BIGINT NOT NULL,
    -- Increases each time that the lease is taken. It is part of the transaction IDs that a sender
    -- uses.
    epoch BIGINT NOT NULL,
    -- All changes up to this position are handled, except those that tables of the work itself
    -- list.
    position BIGINT NOT NULL
);


----------------------------------------------------------------------------------------------------
-- Rooms
----------------------------------------------------------------------------------------------------

-- Rooms that this server knows, with their head: the part that changes with every event. Written by
-- storage/rooms/rooms.py.
CREATE TABLE rooms (
    -- Internal number of the room.
    room_nid ROWID NOT NULL PRIMARY KEY,
    -- The room ID.
    room_id TEXT NOT NULL UNIQUE,
    -- The room version. For a room that we only know from an invite or knock: the version that the
    -- inviting server stated.
    version TEXT NOT NULL,
    -- Increases with every change of the head. A writer that prepared an event on another head
    -- version has to rebuild it.
    head_version BIGINT NOT NULL,
    -- Forward extremities: JSON array of [event_nid, event_id].
    extremities TEXT NOT NULL,
    -- The largest depth of an event in the room.
    depth BIGINT NOT NULL,
    -- Root of the current state in state_nodes. NULL: the state is empty.
    state_root BYTES,
    -- Number of joined members, local and remote.
    joined_count BIGINT NOT NULL DEFAULT 0,
    -- Number of invited members, local and remote.
    invited_count BIGINT NOT NULL DEFAULT 0,
    -- 1: the room is listed in this server's public room directory.
    is_public INTEGER NOT NULL DEFAULT 0,
    -- Time at which the room was created, or at which this server learned of it.
    creation_ts BIGINT NOT NULL,
    -- While only partial state is known: the event_nid of the join by which this server entered.
    -- NULL: the complete state is known.
    partial_join BIGINT
) LOW_FILLFACTOR;
-- The room directory, ordered by number of members.
CREATE INDEX rooms_in_directory ON rooms (joined_count, room_nid) WHERE is_public = 1;

-- The parts of a room's current state that room directories and summaries show. Updated with the
-- state. Written by storage/rooms/rooms.py and storage/rooms/summaries.py.
CREATE TABLE room_summaries (
    -- The room.
    room_nid ROWID NOT NULL PRIMARY KEY,
    -- Content of m.room.name. NULL: none is set.
    name TEXT,
    -- Content of m.room.topic. NULL: none is set.
    topic TEXT,
    -- The alias in m.room.canonical_alias. NULL: none is set.
    canonical_alias TEXT,
    -- The mxc URI in m.room.avatar. NULL: none is set.
    avatar_url TEXT,
    -- The join rule. NULL: none is set.
    join_rule TEXT,
    -- The history visibility. NULL: none is set.
    history_visibility TEXT,
    -- The guest access rule. NULL: none is set.
    guest_access TEXT,
    -- The room type of m.room.create, for example m.space. NULL: an ordinary room.
    room_type TEXT,
    -- The algorithm in m.room.encryption. NULL: the room is not encrypted.
    encryption TEXT,
    -- 0: m.room.create confines the room to its creator's server (m.federate is false).
    federates INTEGER NOT NULL DEFAULT 1,
    -- JSON array: the rooms whose members a restricted join rule admits. NULL: the join rule names
    -- none.
    allowed_rooms TEXT
);

-- Aliases of this server. Written by storage/directory/aliases.py.
CREATE TABLE room_aliases (
    -- The full alias.
    alias TEXT NOT NULL PRIMARY KEY,
    -- The room to which it points.
    room_nid BIGINT NOT NULL,
    -- User ID of the creator.
    creator TEXT NOT NULL,
    -- Time of creation.
    created_ts BIGINT NOT NULL
) CLUSTERED;
CREATE INDEX room_aliases_by_room ON room_aliases (room_nid);

-- Children of spaces: the m.space.child entries that name servers to join through. Written by
-- storage/rooms/spaces.py.
CREATE TABLE space_children (
    -- The space.
    room_nid BIGINT NOT NULL,
    -- Room ID of the child. The server need not know the room.
    child_id TEXT NOT NULL,
    -- The m.space.child event.
    event_nid BIGINT NOT NULL,
    -- Timestamp of that event, which orders children without an `order`.
    origin_server_ts BIGINT NOT NULL,
    -- The `order` of the event. NULL: there is none, or an invalid one.
    child_order TEXT,
    -- 1: the event suggests the room to members of the space.
    suggested INTEGER NOT NULL,
    PRIMARY KEY (room_nid, child_id)
) CLUSTERED;
CREATE INDEX space_children_by_child ON space_children (child_id);

-- Invites of remote users into a room that was just created, which are still to be sent. Written by
-- storage/rooms/pending_invites.py.
CREATE TABLE pending_invites (
    -- The room.
    room_nid BIGINT NOT NULL,
    -- The user to invite.
    user_id TEXT NOT NULL,
    -- Order of the invites of a room.
    ordinal INTEGER NOT NULL,
    -- The local user who invites.
    sender TEXT NOT NULL,
    -- Content of the membership event: JSON.
    content BYTES NOT NULL,
    -- For the first invite of a room: time until which one node works on it. Others have a time far
    -- in the future until it is their turn.
    due_ts BIGINT NOT NULL,
    PRIMARY KEY (room_nid, user_id)
);
CREATE INDEX pending_invites_due ON pending_invites (due_ts);


----------------------------------------------------------------------------------------------------
-- Events
----------------------------------------------------------------------------------------------------

-- Every event, accepted or not. A row is immutable, except that a redaction or a purge removes the
-- content. Columns of fixed length come first: PostgreSQL then needs no padding between them.
-- Written by storage/persist/room_writer.py.
CREATE TABLE events (
    -- Internal number of the event. Numbers increase in the order in which events are stored.
    event_nid ROWID NOT NULL PRIMARY KEY,
    -- The room.
    room_nid BIGINT NOT NULL,
    -- Arrival: the stream position. NULL for outliers, backfilled events, and events that were not
    -- accepted.
    position BIGINT,
    -- Depth of the event, as the event states it.
    depth BIGINT NOT NULL,
    -- Timestamp of the event, but at most the time at which it arrived: retention counts from here.
    origin_server_ts BIGINT NOT NULL,
    -- For a state event: event_nid of the state entry that it replaced. NULL: there was none, or it
    -- is not a state event.
    replaces BIGINT,
    -- event_nid of the redaction that removed the content. NULL: not redacted.
    redacted_by BIGINT,
    -- Bits, see EventFlag: 1 outlier, 2 rejected, 4 soft-failed, 8 notifies users with default push
    -- rules, 16 is in the timeline, 32 is highlighted for users with default push rules, 64
    -- event_push_actions has rows of the event, 256 is to be sent to other servers, 512 resolved
    -- forks of the state, 1024 its state was completed later, 2048 purged, 4096 purged because no
    -- local user remembered the room, 8192 some of its predecessors were missing.
    flags INTEGER NOT NULL,
    -- The event ID.
    event_id TEXT NOT NULL UNIQUE,
    -- The event type.
    type TEXT NOT NULL,
    -- The state key. NULL: not a state event.
    state_key TEXT,
    -- User ID of the sender.
    sender TEXT NOT NULL,
    -- Root of the state after the event in state_nodes. NULL: an outlier, or the state is empty.
    state_root BYTES,
    -- The event in federation format: JSON. After a redaction or purge, the redacted form.
    pdu BYTES NOT NULL,
    -- Root of the current state when the event arrived, if forks made it different from state_root.
    -- NULL: the same as state_root.
    current_root BYTES,
    -- Event ID of the root of the event's thread. NULL: the event is in the main timeline, or its
    -- thread follows from `relations`.
    thread_root TEXT
);
-- /sync: the timeline of a room by arrival.
CREATE INDEX events_by_position ON events (room_nid, position) WHERE position IS NOT NULL;
-- /messages: visible events, in the order of the room. `events_hidden_by_depth` has all others.
CREATE INDEX events_visible_by_depth ON events (room_nid, depth, event_nid)
    WHERE (flags & 2064) NOT IN (0, 2048, 2064);
-- Events by timestamp: state events here, other events that are not purged in
-- `events_messages_by_time`.
CREATE INDEX events_state_by_time ON events (room_nid, origin_server_ts, event_nid)
    WHERE state_key IS NOT NULL;
-- Purged events whose content other servers may still have.
CREATE INDEX events_forgotten_by_depth ON events (room_nid, depth, event_nid)
    WHERE (flags & 4096) <> 0;
-- Unread counts: events that notify or that have rows in event_push_actions.
CREATE INDEX events_unread ON events (room_nid, position, sender, flags, thread_root,
    redacted_by)
    WHERE (flags & 72) <> 0;
-- Highlights of a room.
CREATE INDEX events_highlighted ON events (room_nid, position) WHERE (flags & 32) <> 0;
-- The latest activity in threads.
CREATE INDEX events_in_threads ON events (room_nid, position, event_nid)
    WHERE thread_root IS NOT NULL;
-- The stream as the sender to other servers reads it.
CREATE INDEX events_to_send ON events (position) WHERE (flags & 256) <> 0;
-- Users who joined, left or changed their name themselves, as the sender to other servers reads
-- them.
CREATE INDEX events_own_memberships ON events (position)
    WHERE type = 'm.room.member' AND state_key = sender;
-- The stream as pushers read it.
CREATE INDEX events_to_push ON events (position) WHERE (flags & 72) <> 0;
-- Redactions in the stream, for nodes that update unread counts.
CREATE INDEX events_redactions ON events (position) WHERE type = 'm.room.redaction';
CREATE INDEX events_messages_by_time ON events (room_nid, origin_server_ts, event_nid)
    WHERE state_key IS NULL AND (flags & 2048) <> 2048;
CREATE INDEX events_hidden_by_depth ON events (room_nid, depth, event_nid)
    WHERE (flags & 2064) <> 16;

-- Missing predecessors: where backfill continues. Written by storage/events/timelines.py.
CREATE TABLE backward_extremities (
    -- The room.
    room_nid BIGINT NOT NULL,
    -- The missing event.
    event_id TEXT NOT NULL,
    -- Estimated depth: one less than the largest depth of a known event that follows it.
    depth BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (room_nid, event_id)
) CLUSTERED;

-- Redactions by target, including those that arrived before their target. Written by
-- storage/persist/room_writer.py.
CREATE TABLE redactions (
    -- Event ID of the target.
    redacts TEXT NOT NULL,
    -- The redaction.
    event_nid BIGINT NOT NULL,
    PRIMARY KEY (redacts, event_nid)
) CLUSTERED;
-- Targets that were redacted since a given event.
CREATE INDEX redactions_by_event ON redactions (event_nid);

-- Redactions that also apply to the events that relate to their target, including later ones.
-- Written by storage/rooms/related_redactions.py.
CREATE TABLE related_redactions (
    -- Event ID of the redacted event.
    target TEXT NOT NULL,
    -- User ID of the user who redacted it.
    sender TEXT NOT NULL,
    -- Type of the relations to redact; `*` for all.
    rel_type TEXT NOT NULL,
    -- The room.
    room_nid BIGINT NOT NULL,
    -- Reason for the redactions. NULL: none was given.
    reason TEXT,
    -- Time at which a node may (again) redact the events that existed then. NULL: all of them are
    -- redacted.
    due_ts BIGINT,
    -- Number of consecutive failed attempts.
    attempts INTEGER NOT NULL DEFAULT 0,
    -- 1: redacts only events of `sender`.
    only_own INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (target, sender, rel_type)
);
CREATE INDEX related_redactions_due ON related_redactions (due_ts) WHERE due_ts IS NOT NULL;

-- Events that arrived without their content and have it now. Tells other nodes to read them again;
-- rows are deleted after a day. Written by storage/persist/content_restore.py.
CREATE TABLE restored_contents (
    -- The stream position of the change.
    position BIGINT NOT NULL PRIMARY KEY,
    -- The event.
    event_id TEXT NOT NULL,
    -- Time of the change.
    restored_ts BIGINT NOT NULL DEFAULT 0
) CLUSTERED;
CREATE INDEX restored_contents_by_time ON restored_contents (restored_ts);

-- Relations: a row for each event in a timeline that names a parent and is not redacted. Written by
-- storage/events/relations.py.
CREATE TABLE relations (
    -- Event ID of the parent, which need not be stored.
    target TEXT NOT NULL,
    -- Relation type.
    rel_type TEXT NOT NULL,
    -- Depth of the child. With event_nid it orders the children.
    depth BIGINT NOT NULL,
    -- The child.
    event_nid BIGINT NOT NULL,
    -- Event ID of the child.
    event_id TEXT NOT NULL,
    -- Room of the child. A child counts only for a parent in the same room.
    room_nid BIGINT NOT NULL,
    -- Event type of the child.
    type TEXT NOT NULL,
    -- Sender of the child.
    sender TEXT NOT NULL,
    -- Timestamp of the child.
    origin_server_ts BIGINT NOT NULL,
    -- The `key` of an annotation. NULL: not an annotation.
    annotation TEXT,
    -- 0: a replacement without m.new_content, which replaces nothing.
    has_new_content INTEGER NOT NULL,
    PRIMARY KEY (target, rel_type, depth, event_nid)
) CLUSTERED;
-- The latest valid edit of an event.
CREATE INDEX relations_by_edit ON relations (target, room_nid, sender, type, origin_server_ts,
    event_id)
    WHERE rel_type = 'm.replace' AND has_new_content = 1;
-- The events of a room that are in threads, in the order of the room.
CREATE INDEX relations_by_thread ON relations (room_nid, depth, event_nid)
    WHERE rel_type = 'm.thread';
CREATE INDEX relations_by_event ON relations (event_nid);

-- Participants of threads. Derived from `relations` and written with it, so that threads are
-- counted and listed without reading all their events. Written by storage/events/thread_senders.py.
CREATE TABLE thread_senders (
    -- Event ID of the thread root, which need not be stored.
    target TEXT NOT NULL,
    -- The room.
    room_nid BIGINT NOT NULL,
    -- User ID of the participant.
    sender TEXT NOT NULL,
    -- Number of their events in the thread, at least 1.
    count BIGINT NOT NULL,
    -- Depth of their latest event in the order of the room.
    depth BIGINT NOT NULL,
    -- That event.
    event_nid BIGINT NOT NULL,
    PRIMARY KEY (target, room_nid, sender)
) CLUSTERED;
-- The threads of a room by latest activity.
CREATE INDEX thread_senders_by_latest ON thread_senders (room_nid, depth, event_nid);

-- Sticky events (MSC4354), which everyone in the room receives until they expire. Written by
-- storage/rooms/sticky_events.py.
CREATE TABLE sticky_events (
    -- The event.
    event_nid BIGINT NOT NULL PRIMARY KEY,
    -- The room.
    room_nid BIGINT NOT NULL,
    -- User ID of the sender.
    sender TEXT NOT NULL,
    -- Stream position: the arrival of the event, or a new position if it was backfilled or released
    -- later.
    position BIGINT NOT NULL,
    -- Time at which the event is no longer sticky.
    expires_ts BIGINT NOT NULL,
    -- 1: the event is soft-failed, and is sent to clients once its sender may send it.
    is_held INTEGER NOT NULL
);
CREATE INDEX sticky_events_by_expiry ON sticky_events (expires_ts);
CREATE INDEX sticky_events_held ON sticky_events (room_nid, sender) WHERE is_held = 1;

-- Delayed events (MSC4140): those that are scheduled, and for some time those that were sent or
-- cancelled. Written by storage/rooms/delayed_events.py.
CREATE TABLE delayed_events (
    -- Public identifier. It authorises a client to manage the event.
    delay_id TEXT NOT NULL PRIMARY KEY,
    -- The sender.
    user_id TEXT NOT NULL,
    -- Device that scheduled it. '': a token without a device.
    device_id TEXT NOT NULL,
    -- Application service that scheduled it. NULL: a user did.
    appservice_id TEXT,
    -- The room.
    room_id TEXT NOT NULL,
    -- Event type.
    type TEXT NOT NULL,
    -- State key. NULL: not a state event.
    state_key TEXT,
    -- Content: JSON.
    content BYTES NOT NULL,
    -- Timestamp that an application service asked for. NULL: none.
    origin_server_ts BIGINT,
    -- The delay in milliseconds.
    delay_ms BIGINT NOT NULL,
    -- Time at which the delay started, or was restarted.
    running_since BIGINT NOT NULL,
    -- Time at which the event is due. NULL: it was sent or cancelled.
    send_ts BIGINT,
    -- Time until which one node is sending it; 0: none.
    leased_until BIGINT NOT NULL,
    -- Time at which it was sent or cancelled. NULL: it is scheduled.
    finalised_ts BIGINT,
    -- `send` or `cancel`. NULL: it is scheduled.
    outcome TEXT,
    -- Cause of the outcome: `action`, `delay` or `error`. NULL: it is scheduled.
    reason TEXT,
    -- ID of the event that was sent. NULL: none was.
    event_id TEXT,
    -- The Matrix error because of which it could not be sent: JSON. NULL: none.
    error BYTES,
    -- Time in milliseconds for which the event is sticky once it is sent. NULL: it is not sticky.
    sticky_ms BIGINT
);
CREATE INDEX delayed_events_by_finalised ON delayed_events (finalised_ts)
    WHERE finalised_ts IS NOT NULL;
CREATE INDEX delayed_events_by_event ON delayed_events (event_id) WHERE event_id IS NOT NULL;
CREATE INDEX delayed_events_by_time ON delayed_events (send_ts) WHERE send_ts IS NOT NULL;
CREATE INDEX delayed_events_by_user ON delayed_events (user_id, finalised_ts);

-- Requests with a transaction ID that were carried out, so that a retry is answered and not
-- repeated. Written by storage/rooms/sent_transactions.py.
CREATE TABLE sent_transactions (
    -- SHA-256 of user, device, method, path and transaction ID.
    request BYTES NOT NULL PRIMARY KEY,
    -- Time of the request.
    created_ts BIGINT NOT NULL,
    -- The event that the request created. NULL: it created none.
    event_nid BIGINT,
    -- Device of the sender. The device's own /sync shows the transaction ID.
    device_id TEXT NOT NULL,
    -- Transaction ID.
    txn_id TEXT NOT NULL,
    -- The response body: JSON. NULL: the response is the event ID.
    response BYTES
) CLUSTERED;
CREATE INDEX sent_transactions_by_event ON sent_transactions (event_nid)
    WHERE event_nid IS NOT NULL;


----------------------------------------------------------------------------------------------------
-- Room state and auth chains
----------------------------------------------------------------------------------------------------

-- Numbers of the (type, state_key) pairs of a room: the keys of its state trees. Numbers start at 0
-- and have no gaps. Written by storage/state/keys.py.
CREATE TABLE state_keys (
    -- The room.
    room_nid BIGINT NOT NULL,
    -- The number.
    key_nid BIGINT NOT NULL,
    -- Event type.
    type TEXT NOT NULL,
    -- State key.
    state_key TEXT NOT NULL,
    PRIMARY KEY (room_nid, key_nid)
) CLUSTERED;
CREATE UNIQUE INDEX state_keys_by_name ON state_keys (room_nid, type, state_key);

-- Nodes of the state trees (storage/state/radix_tree.py). Rooms share no node, since nodes contain
-- event numbers. Written by storage/state/state_tree.py.
CREATE TABLE state_nodes (
    -- The room. It comes first in the key, so that the nodes of a room are stored together.
    room_nid BIGINT NOT NULL,
    -- Hash of the content.
    node BYTES NOT NULL,
    -- The encoded node.
    content BYTES NOT NULL,
    -- Mark of the last garbage collection that reached the node; 0: none did
    -- (storage/maintenance/state_garbage_collection.py).
    cycle BIGINT NOT NULL,
    PRIMARY KEY (room_nid, node)
) CLUSTERED;

-- Rooms whose unreferenced state nodes are being collected. Written by
-- storage/maintenance/state_garbage_collection.py.
CREATE TABLE state_garbage_collections (
    -- The room.
    room_nid ROWID NOT NULL PRIMARY KEY,
    -- Number of this collection: even, and higher than those of earlier collections.
    cycle BIGINT NOT NULL,
    -- Progress of the collection: JSON.
    progress TEXT NOT NULL
);

-- Chain cover of the auth graph: the chain of each state event, and its number there. Written by
-- storage/events/auth_chains.py.
CREATE TABLE auth_chains (
    -- The event.
    event_nid ROWID NOT NULL PRIMARY KEY,
    -- Number of the chain.
    chain BIGINT NOT NULL,
    -- Number in the chain, from 1. All events of the chain with lower numbers are in the event's
    -- auth chain.
    sequence_number BIGINT NOT NULL
);
CREATE UNIQUE INDEX auth_chains_by_chain ON auth_chains (chain, sequence_number);

-- Chain cover of the auth graph: links from chain to chain. Written by
-- storage/events/auth_chains.py.
CREATE TABLE auth_chain_links (
    -- The chain in which the link starts.
    chain BIGINT NOT NULL,
    -- The sequence number from which on the link holds.
    sequence_number BIGINT NOT NULL,
    -- The chain to which it leads.
    target_chain BIGINT NOT NULL,
    -- All events of the target chain up to this sequence number are in the auth chain.
    target_sequence_number BIGINT NOT NULL,
    PRIMARY KEY (chain, sequence_number, target_chain)
) CLUSTERED;
CREATE INDEX auth_chain_links_by_target ON auth_chain_links (target_chain, target_sequence_number);


----------------------------------------------------------------------------------------------------
-- Memberships
----------------------------------------------------------------------------------------------------

-- The current membership of everyone who ever had one in a room, local or remote. Written by
-- storage/rooms/memberships.py.
CREATE TABLE memberships (
    -- The room.
    room_nid BIGINT NOT NULL,
    -- The user.
    user_id TEXT NOT NULL,
    -- `join`, `invite`, `knock`, `leave` or `ban`.
    membership TEXT NOT NULL,
    -- The membership event. 0: this server is not in the room, and the event is in
    -- out_of_room_memberships.
    event_nid BIGINT NOT NULL,
    -- Sender of that event.
    sender TEXT NOT NULL,
    -- Stream position of the change.
    position BIGINT NOT NULL,
    -- 1: a user of this server.
    is_local INTEGER NOT NULL,
    -- Display name in the event. NULL: none.
    display_name TEXT,
    -- Avatar in the event. NULL: none.
    avatar_url TEXT,
    -- 1: the user has forgotten the room, which only one who is not joined can do.
    forgotten INTEGER NOT NULL DEFAULT 0,
    -- Position at which a joined local user joined. A change of name does not change it. NULL: not
    -- joined, or remote.
    joined_position BIGINT,
    -- Position at which a user who is no longer joined left or was removed. NULL: the user is
    -- joined, or never was.
    left_position BIGINT,
    PRIMARY KEY (room_nid, user_id)
) CLUSTERED;
-- The rooms of a user.
CREATE INDEX memberships_by_user ON memberships (user_id, membership);
-- The members of a room by membership.
CREATE INDEX memberships_by_membership ON memberships (room_nid, membership, event_nid);
-- Changes of a room's members since a position.
CREATE INDEX memberships_by_position ON memberships (room_nid, position);
-- Joined local users of a room.
CREATE INDEX memberships_local_joined ON memberships (room_nid, user_id)
    WHERE membership = 'join' AND is_local = 1;
-- Local users of a room whose membership changed since a position.
CREATE INDEX memberships_local_by_position ON memberships (room_nid, position) WHERE is_local = 1;
-- Local users who are in a room, or who were and have not forgotten it.
CREATE INDEX memberships_not_forgotten ON memberships (room_nid)
    WHERE is_local = 1 AND forgotten = 0;
-- Invites in the stream, as pushers read it.
CREATE INDEX memberships_invited ON memberships (position)
    WHERE membership = 'invite' AND is_local = 1;
-- Joins in the stream, for pushers: joining ends an unread invite.
CREATE INDEX memberships_joined ON memberships (position)
    WHERE membership = 'join' AND is_local = 1;
-- Local users who left or were banned, in the stream.
CREATE INDEX memberships_left ON memberships (position)
    WHERE membership IN ('leave', 'ban') AND is_local = 1;

-- Invites and knocks of our users in rooms that this server is not in, and the leave events after
-- them. Their auth events are unknown, so they are not stored as events of the room. Written by
-- storage/rooms/out_of_room_memberships.py.
CREATE TABLE out_of_room_memberships (
    -- The room.
    room_nid BIGINT NOT NULL,
    -- The local user.
    user_id TEXT NOT NULL,
    -- The membership event.
    event_id TEXT NOT NULL,
    -- A server that is in the room.
    server TEXT NOT NULL,
    -- Room version that this server stated. Another server may state another one.
    version TEXT NOT NULL DEFAULT '',
    -- The event: JSON.
    pdu BYTES NOT NULL,
    -- Stripped state from that server: JSON array.
    stripped_state BYTES NOT NULL,
    PRIMARY KEY (room_nid, user_id)
) CLUSTERED;

-- Further invites from other servers to the same user and room. When the invite that the user sees
-- is withdrawn, the first of these takes its place. Written by
-- storage/rooms/out_of_room_memberships.py.
CREATE TABLE queued_invites (
    -- The room.
    room_nid BIGINT NOT NULL,
    -- The local user.
    user_id TEXT NOT NULL,
    -- Server that sent the invite.
    server TEXT NOT NULL,
    -- Order of arrival.
    ordinal BIGINT NOT NULL,
    -- The invite event.
    event_id TEXT NOT NULL,
    -- Room version that the server stated.
    version TEXT NOT NULL,
    -- The event: JSON.
    pdu BYTES NOT NULL,
    -- Stripped state from that server: JSON array.
    stripped_state BYTES NOT NULL,
    -- The fields of the event that `memberships` shows: JSON.
    membership BYTES NOT NULL,
    PRIMARY KEY (room_nid, user_id, server)
) CLUSTERED;

-- Servers that still have to be sent the leave event of a local user who rejected an invite or
-- withdrew a knock. Written by storage/federation/pending_leaves.py.
CREATE TABLE pending_leaves (
    -- The room.
    room_nid BIGINT NOT NULL,
    -- The local user.
    user_id TEXT NOT NULL,
    -- Server to notify.
    server TEXT NOT NULL,
    -- The leave event in out_of_room_memberships. If another event is stored there, nothing has to
    -- be sent any more.
    event_id TEXT NOT NULL,
    -- Event ID of the invite or knock that was ended, as that server knows it. '': unknown.
    ended_event_id TEXT NOT NULL DEFAULT '',
    -- Time of the leave.
    left_ts BIGINT NOT NULL,
    -- Time of the next attempt.
    due_ts BIGINT NOT NULL,
    -- Number of attempts.
    attempts INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (room_nid, user_id, server)
) CLUSTERED;
CREATE INDEX pending_leaves_by_server ON pending_leaves (server, due_ts);
CREATE INDEX pending_leaves_due ON pending_leaves (due_ts);


----------------------------------------------------------------------------------------------------
-- Rooms with partial state
----------------------------------------------------------------------------------------------------

-- Rooms that were joined with partial state, and how far their state is completed. Written by
-- storage/rooms/partial_rooms.py.
CREATE TABLE partial_rooms (
    -- The room.
    room_nid BIGINT NOT NULL PRIMARY KEY,
    -- event_nid of the join.
    join_nid BIGINT NOT NULL,
    -- Stream position of the join.
    position BIGINT NOT NULL,
    -- Server that handled the join.
    resident_server TEXT NOT NULL,
    -- Root of the part of the state before the join that was fetched so far. NULL: none.
    fetched_root BYTES,
    -- Stream position from which on the complete state is known. NULL: the state is incomplete.
    completed_position BIGINT,
    -- Time until which one node works on it; 0: none does.
    leased_until BIGINT NOT NULL DEFAULT 0
);

-- Servers that were in such a room when we joined, as the resident server stated. Written by
-- storage/rooms/partial_rooms.py.
CREATE TABLE partial_servers (
    -- The room.
    room_nid BIGINT NOT NULL,
    -- The server.
    server TEXT NOT NULL,
    PRIMARY KEY (room_nid, server)
) CLUSTERED;
CREATE INDEX partial_servers_by_server ON partial_servers (server);

-- Events that were accepted on partial state, until they are checked again. Written by
-- storage/rooms/partial_rooms.py.
CREATE TABLE partial_events (
    -- The room.
    room_nid BIGINT NOT NULL,
    -- Order in which they were accepted.
    ordinal BIGINT NOT NULL,
    -- The event.
    event_nid BIGINT NOT NULL,
    -- 1: the event was backfilled, and is not shown as new.
    is_backfilled INTEGER NOT NULL,
    -- 1: a predecessor was missing, so the state before the event is assumed.
    has_gap INTEGER NOT NULL,
    -- `events.flags` on the complete state. NULL: not checked yet.
    flags INTEGER,
    -- `events.state_root` on the complete state. NULL as there, or not checked yet.
    state_root BYTES,
    -- `events.replaces` on the complete state. NULL as there, or not checked yet.
    replaces BIGINT,
    -- `events.current_root` on the complete state. NULL as there, or not checked yet.
    current_root BYTES,
    PRIMARY KEY (room_nid, ordinal)
) CLUSTERED;
CREATE INDEX partial_events_by_event ON partial_events (event_nid);

-- State events from other servers that could not be verified in time because keys were missing.
-- They are added once they are verified. Written by storage/partial_state/unverified_events.py.
CREATE TABLE unverified_events (
    -- The room.
    room_nid BIGINT NOT NULL,
    -- The event.
    event_id TEXT NOT NULL,
    -- Depth of the event.
    depth BIGINT NOT NULL,
    -- The event as it was received: JSON.
    pdu BYTES NOT NULL,
    -- Where it is needed: 0 only in the auth chain of others, 1 in a state of the time before our
    -- users had left, 2 in the state at some event, 3 in the state before our join.
    needed_in INTEGER NOT NULL,
    -- The event once it was verified and stored. NULL: it is not yet.
    event_nid BIGINT,
    -- Number of failed attempts.
    attempts INTEGER NOT NULL DEFAULT 0,
    -- Time of the next attempt.
    next_attempt_ts BIGINT NOT NULL,
    PRIMARY KEY (room_nid, event_id)
) CLUSTERED;


----------------------------------------------------------------------------------------------------
-- Receipts
----------------------------------------------------------------------------------------------------

-- Read receipts; one per user, room, type and thread. Written by storage/rooms/receipts.py.
CREATE TABLE receipts (
    -- The room.
    room_nid BIGINT NOT NULL,
    -- The reader, local or remote.
    user_id TEXT NOT NULL,
    -- `m.read` or `m.read.private`. Fully-read markers are account data.
    receipt_type TEXT NOT NULL,
    -- Event ID of the thread root, or `main`. '': an unthreaded receipt.
    thread_id TEXT NOT NULL,
    -- The event that was read.
    event_id TEXT NOT NULL,
    -- Stream position of that event. NULL: unknown.
    event_position BIGINT,
    -- Time of the receipt.
    ts BIGINT NOT NULL,
    -- Stream position of the receipt.
    position BIGINT NOT NULL,
    PRIMARY KEY (room_nid, user_id, receipt_type, thread_id)
) CLUSTERED;
-- Public receipts in the stream, as the sender to other servers reads it.
CREATE INDEX receipts_to_send ON receipts (position) WHERE receipt_type = 'm.read';
-- Private receipts in the stream, as pushers read it.
CREATE INDEX receipts_private ON receipts (position) WHERE receipt_type = 'm.read.private';
CREATE INDEX receipts_by_position ON receipts (room_nid, position);

-- Receipts of remote users for events that have not arrived yet. Clients get them when the event
-- arrives. Written by storage/rooms/early_receipts.py.
CREATE TABLE early_receipts (
    -- The room.
    room_nid BIGINT NOT NULL,
    -- Order of arrival.
    ordinal BIGINT NOT NULL,
    -- Time of the receipt.
    ts BIGINT NOT NULL,
    -- The remote user.
    user_id TEXT NOT NULL,
    -- As in `receipts`.
    thread_id TEXT NOT NULL,
    -- The missing event.
    event_id TEXT NOT NULL,
    -- Server that sent the receipt.
    server TEXT NOT NULL,
    PRIMARY KEY (room_nid, user_id, thread_id)
) CLUSTERED;
CREATE INDEX early_receipts_by_event ON early_receipts (event_id);
CREATE UNIQUE INDEX early_receipts_by_ordinal ON early_receipts (ordinal);
CREATE INDEX early_receipts_by_server ON early_receipts (server, ordinal);


----------------------------------------------------------------------------------------------------
-- Push rules and notifications
----------------------------------------------------------------------------------------------------

-- Results of push rules that differ from what the event's flags and the user's push_rule_history
-- give. Written by storage/push/event_push_actions.py.
CREATE TABLE event_push_actions (
    -- The local user.
    user_id TEXT NOT NULL,
    -- The room.
    room_nid BIGINT NOT NULL,
    -- Stream position of the event.
    position BIGINT NOT NULL,
    -- The event.
    event_nid BIGINT NOT NULL,
    -- 0 nothing, 1 notifies, 3 notifies and is highlighted.
    action INTEGER NOT NULL,
    PRIMARY KEY (user_id, room_nid, position)
) CLUSTERED;

-- Positions up to which rows of event_push_actions may have been deleted because the user read the
-- events long ago. Written by storage/push/old_push_actions.py.
CREATE TABLE event_push_action_floors (
    -- The local user.
    user_id TEXT NOT NULL,
    -- The room.
    room_nid BIGINT NOT NULL,
    -- The highest deleted position.
    position BIGINT NOT NULL,
    PRIMARY KEY (user_id, room_nid)
) CLUSTERED;

-- How a user's own push rules treat ordinary messages. The latest row before an event applies to
-- it. Written by storage/push/push_rule_history.py.
CREATE TABLE push_rule_history (
    -- The local user.
    user_id TEXT NOT NULL,
    -- Room ID in lower case. '': all rooms without a row of their own.
    room_id TEXT NOT NULL,
    -- Stream position from which on this applies.
    position BIGINT NOT NULL,
    -- 0 as the flags of the event say, 1 only highlights, 2 nothing, -1 the same as in other rooms.
    level INTEGER NOT NULL,
    PRIMARY KEY (user_id, room_id, position)
) CLUSTERED;

-- Pushers, and their delivery state. Written by storage/push/pushers.py.
CREATE TABLE pushers (
    -- Internal number of the pusher.
    pusher_nid ROWID NOT NULL PRIMARY KEY,
    -- Events up to this position are not pushed any more: they were pushed, given up, or are older
    -- than the pusher.
    position BIGINT NOT NULL,
    -- Time at which a client last set it.
    set_ts BIGINT NOT NULL,
    -- Time since which pushes fail. NULL: the last push succeeded.
    failing_since_ts BIGINT,
    -- Time of the last attempt.
    last_attempt_ts BIGINT NOT NULL,
    -- Back-off after that attempt in milliseconds; 0: it succeeded.
    backoff_ms BIGINT NOT NULL,
    -- Time of the last accepted push. NULL: there was none.
    last_success_ts BIGINT,
    -- E-mail: time at which to check whether an e-mail is due. NULL: nothing is unread.
    due_ts BIGINT,
    -- 0: the client has disabled the pusher.
    enabled INTEGER NOT NULL,
    -- 1: pushes carry no unread count, because the client counts itself.
    no_counts INTEGER NOT NULL,
    -- The local user.
    user_id TEXT NOT NULL,
    -- Application ID.
    app_id TEXT NOT NULL,
    -- Push key.
    pushkey TEXT NOT NULL,
    -- `http` or `email`.
    kind TEXT NOT NULL,
    -- Name of the application.
    app_display_name TEXT NOT NULL,
    -- Name of the device.
    device_display_name TEXT NOT NULL,
    -- Profile tag. NULL: none.
    profile_tag TEXT,
    -- Preferred language.
    lang TEXT NOT NULL,
    -- Device that set it, and with which it is removed. NULL: none, for example for e-mail.
    device_id TEXT,
    -- Scheme, host and port of the push gateway. '': e-mail.
    gateway TEXT NOT NULL,
    -- Error of the last attempt. NULL: it succeeded.
    error TEXT,
    -- The pusher's `data`: JSON object.
    data BYTES NOT NULL
) LOW_FILLFACTOR;
CREATE INDEX pushers_by_due ON pushers (due_ts) WHERE due_ts IS NOT NULL;
CREATE UNIQUE INDEX pushers_by_key ON pushers (app_id, pushkey, user_id);
CREATE INDEX pushers_by_user ON pushers (user_id);

-- Latest change of each user's pushers, so that other nodes read them again. Written by
-- storage/push/pushers.py.
CREATE TABLE pusher_changes (
    -- The local user.
    user_id TEXT NOT NULL PRIMARY KEY,
    -- Stream position of the change.
    position BIGINT NOT NULL
);
CREATE INDEX pusher_changes_by_position ON pusher_changes (position);

-- Rate limit of e-mails about one room. Written by storage/push/pushers.py.
CREATE TABLE email_rate_limits (
    -- The pusher.
    pusher_nid BIGINT NOT NULL,
    -- The room.
    room_nid BIGINT NOT NULL,
    -- Time of the last e-mail about the room.
    sent_ts BIGINT NOT NULL,
    -- Least time between it and the next one, in milliseconds.
    interval_ms BIGINT NOT NULL,
    PRIMARY KEY (pusher_nid, room_nid)
) CLUSTERED;


----------------------------------------------------------------------------------------------------
-- Accounts
----------------------------------------------------------------------------------------------------

-- Accounts of this server. A row is never deleted, so that the user ID is never reused. Written by
-- storage/accounts/accounts.py.
CREATE TABLE accounts (
    -- The user ID.
    user_id TEXT NOT NULL PRIMARY KEY,
    -- Modular crypt string: Argon2id, or bcrypt for imported accounts. NULL: the account has no
    -- password.
    password_hash TEXT,
    -- Time of registration.
    created_ts BIGINT NOT NULL,
    -- 1: a guest account.
    is_guest INTEGER NOT NULL DEFAULT 0,
    -- 1: a server administrator.
    is_admin INTEGER NOT NULL DEFAULT 0,
    -- Time of deactivation. NULL: the account is active.
    deactivated_ts BIGINT,
    -- 1: deactivated with the request to erase the user's messages.
    erased INTEGER NOT NULL DEFAULT 0,
    -- 1: locked by an administrator or a directory.
    locked INTEGER NOT NULL DEFAULT 0,
    -- 1: suspended: the user may read, and do little else.
    suspended INTEGER NOT NULL DEFAULT 0,
    -- 1: shadow-banned: the user's events and invites are not sent, and the user is not notified.
    shadow_banned INTEGER NOT NULL DEFAULT 0,
    -- User type, as administrators set it, for example `bot` or `support`. NULL: none.
    user_type TEXT,
    -- Application service that owns the account. NULL: none does.
    appservice_id TEXT,
    -- Stream position of the last change of sessions, flags or password. Other nodes then
    -- invalidate their caches of the account.
    position BIGINT NOT NULL,
    -- Increases when all credentials are revoked: by a new password, a sign-out everywhere, a lock
    -- or deactivation. A pending sign-in with a lower value is refused.
    credential_epoch BIGINT NOT NULL DEFAULT 0,
    -- Time since which the account waits for approval. NULL: it does not wait.
    approval_pending_ts BIGINT,
    -- Languages for the e-mail that announces the approval, as in Accept-Language. NULL: unknown.
    approval_languages TEXT,
    -- Time at which the account expires. NULL: it does not.
    expires_ts BIGINT,
    -- The e-mail about that: 0 has to be sent, 1 was sent, 2 is not wanted, 3 the user has no
    -- address.
    renewal_email INTEGER NOT NULL DEFAULT 0,
    -- 1: the account has expired. Set within a minute of the time, so that pushers need not compare
    -- times.
    is_expired INTEGER NOT NULL DEFAULT 0
);
-- Accounts that changed since a position.
CREATE INDEX accounts_by_position ON accounts (position);
-- Accounts that get an expiry time when account validity is switched on.
CREATE INDEX accounts_without_expiry ON accounts (user_id)
    WHERE expires_ts IS NULL AND deactivated_ts IS NULL AND is_guest = 0 AND appservice_id
        IS NULL;
-- Accounts that have to be sent a renewal e-mail.
CREATE INDEX accounts_by_expiry ON accounts (expires_ts)
    WHERE renewal_email = 0 AND deactivated_ts IS NULL;
CREATE INDEX accounts_pending_approval ON accounts (approval_pending_ts, user_id)
    WHERE approval_pending_ts IS NOT NULL;
CREATE INDEX accounts_guests ON accounts (user_id) WHERE is_guest = 1;
CREATE INDEX accounts_expired ON accounts (user_id) WHERE is_expired = 1;
CREATE INDEX accounts_to_mark_expired ON accounts (expires_ts)
    WHERE expires_ts IS NOT NULL AND is_expired = 0 AND deactivated_ts IS NULL;

-- New accounts that have not joined all auto-join rooms yet. Written by
-- storage/accounts/accounts.py.
CREATE TABLE pending_auto_joins (
    -- The local user.
    user_id TEXT NOT NULL PRIMARY KEY,
    -- Time at which a node may (again) take this up.
    due_ts BIGINT NOT NULL DEFAULT 0
);

-- Deactivated accounts that have not left all their rooms yet. Written by
-- storage/accounts/accounts.py.
CREATE TABLE leaving_accounts (
    -- The local user.
    user_id TEXT NOT NULL PRIMARY KEY
);

-- Accounts that were erased. Users who join a room later get these accounts' events redacted.
-- Written by storage/accounts/erasures.py.
CREATE TABLE erasures (
    -- The local user.
    user_id TEXT NOT NULL PRIMARY KEY,
    -- Stream position of the erasure.
    position BIGINT NOT NULL
);
CREATE INDEX erasures_by_position ON erasures (position);

-- Tokens that permit registration. Written by storage/accounts/registration_tokens.py.
CREATE TABLE registration_tokens (
    -- The token.
    token TEXT NOT NULL PRIMARY KEY,
    -- Number of registrations that it permits. NULL: unlimited.
    uses_allowed BIGINT,
    -- Registrations that are under way.
    pending BIGINT NOT NULL DEFAULT 0,
    -- Registrations that were completed.
    completed BIGINT NOT NULL DEFAULT 0,
    -- Time at which it expires. NULL: never.
    expires_ts BIGINT
);

-- The link in the latest renewal e-mail of each account. Written by storage/accounts/validity.py.
CREATE TABLE renewal_links (
    -- The local user.
    user_id TEXT NOT NULL PRIMARY KEY,
    -- SHA-256 of the secret in the link.
    token_hash BYTES NOT NULL,
    -- Time at which it was used. NULL: it was not.
    used_ts BIGINT
) CLUSTERED;
CREATE UNIQUE INDEX renewal_links_by_token ON renewal_links (token_hash);

-- Consents to terms of service and other documents. A record is never changed. Written by
-- storage/accounts/policy_consents.py.
CREATE TABLE policy_consents (
    -- The local user.
    user_id TEXT NOT NULL,
    -- The document.
    policy_id TEXT NOT NULL,
    -- Version of the document.
    version TEXT NOT NULL,
    -- Time of the first consent to this version.
    ts BIGINT NOT NULL,
    PRIMARY KEY (user_id, policy_id, version)
);
CREATE INDEX policy_consents_by_version ON policy_consents (policy_id, version, user_id);

-- Security log of each account, for its owner and for administrators. Written by
-- storage/accounts/audit.py.
CREATE TABLE audit_records (
    -- Internal number of the record.
    record_nid ROWID NOT NULL PRIMARY KEY,
    -- The local user.
    user_id TEXT NOT NULL,
    -- Time of the event.
    ts BIGINT NOT NULL,
    -- Type of the event, see homeserver/services/audit/audit.py.
    event TEXT NOT NULL,
    -- IP address of the client; for IPv6 its network. NULL: unknown.
    address TEXT,
    -- Device. NULL: none is concerned.
    device_id TEXT,
    -- Administrator who did it. NULL: the owner, or the server itself.
    by_user TEXT,
    -- What it concerns: an address, a provider, a client, a reason for refusal. NULL: nothing more
    -- is known.
    detail TEXT
);
CREATE INDEX audit_records_by_age ON audit_records (ts);
CREATE INDEX audit_records_by_user ON audit_records (user_id, ts);

-- Reports of events, rooms and users to the administrators of this server. Written by
-- storage/moderation/reports.py.
CREATE TABLE reports (
    -- Internal number of the report.
    report_nid ROWID NOT NULL PRIMARY KEY,
    -- Time of the report.
    received_ts BIGINT NOT NULL,
    -- `event`, `room` or `user`.
    kind TEXT NOT NULL,
    -- The local user who reported.
    user_id TEXT NOT NULL,
    -- Reported room, or room of the reported event. NULL: a user was reported.
    room_id TEXT,
    -- Reported event. NULL: none.
    event_id TEXT,
    -- Reported user, or sender of the reported event. NULL: a room was reported.
    target_user_id TEXT,
    -- Reason. NULL: none was given.
    reason TEXT
);
CREATE INDEX reports_by_kind ON reports (kind, report_nid);

-- Profile fields that shadow-banned users set. Only they see them. Written by
-- storage/profiles/profiles.py.
CREATE TABLE shadow_profile_fields (
    -- The local user.
    user_id TEXT NOT NULL,
    -- Name of the field.
    field TEXT NOT NULL,
    -- Value: JSON. NULL: the user removed the field.
    value BYTES,
    PRIMARY KEY (user_id, field)
) CLUSTERED;

-- Changes of the room directory by shadow-banned users. Only they see them. Written by
-- storage/directory/shadow_ban.py.
CREATE TABLE shadow_room_listings (
    -- The local user.
    user_id TEXT NOT NULL,
    -- The room.
    room_nid BIGINT NOT NULL,
    -- 1: the user sees the room in the directory; 0: not.
    is_public INTEGER NOT NULL,
    PRIMARY KEY (user_id, room_nid)
) CLUSTERED;

-- Changes of aliases by shadow-banned users. Only they see them. Written by
-- storage/directory/shadow_ban.py.
CREATE TABLE shadow_aliases (
    -- The local user.
    user_id TEXT NOT NULL,
    -- The alias.
    alias TEXT NOT NULL,
    -- The room to which it points. NULL: the user removed it.
    room_nid BIGINT,
    PRIMARY KEY (user_id, alias)
) CLUSTERED;

-- Room upgrades by shadow-banned users. Only they see them. Written by
-- storage/directory/shadow_ban.py.
CREATE TABLE shadow_room_upgrades (
    -- The local user.
    user_id TEXT NOT NULL,
    -- The old room.
    room_nid BIGINT NOT NULL,
    -- The new room.
    successor_nid BIGINT NOT NULL,
    PRIMARY KEY (user_id, room_nid)
) CLUSTERED;


----------------------------------------------------------------------------------------------------
-- Sessions and authentication
----------------------------------------------------------------------------------------------------

-- Access tokens. Written by storage/login/access_tokens.py.
CREATE TABLE access_tokens (
    -- SHA-256 of the token.
    token_hash BYTES NOT NULL PRIMARY KEY,
    -- Internal number of the token.
    token_nid BIGINT NOT NULL UNIQUE,
    -- The local user.
    user_id TEXT NOT NULL,
    -- The device. NULL: a token without a device, by which an administrator acts as the user.
    device_id TEXT,
    -- Time of creation.
    created_ts BIGINT NOT NULL,
    -- Time at which it expires. NULL: never.
    expires_ts BIGINT,
    -- Refresh token that was issued with it. NULL: none.
    refresh_nid BIGINT,
    -- 0: issued by a refresh and not used yet. Its first use ends the tokens that it replaces.
    first_used INTEGER NOT NULL DEFAULT 1
);
CREATE INDEX access_tokens_by_device ON access_tokens (user_id, device_id);
CREATE INDEX access_tokens_by_refresh ON access_tokens (refresh_nid) WHERE refresh_nid IS NOT NULL;

-- Refresh tokens. Written by storage/login/access_tokens.py.
CREATE TABLE refresh_tokens (
    -- SHA-256 of the token.
    token_hash BYTES NOT NULL PRIMARY KEY,
    -- Internal number of the token.
    refresh_nid BIGINT NOT NULL UNIQUE,
    -- The local user.
    user_id TEXT NOT NULL,
    -- The device.
    device_id TEXT NOT NULL,
    -- Time of creation.
    created_ts BIGINT NOT NULL,
    -- Time at which it expires. NULL: never.
    expires_ts BIGINT,
    -- Time at which the session ends, however often it is refreshed. NULL: never.
    session_expires_ts BIGINT,
    -- SHA-256 of the common start of all refresh tokens of the session: finds a token that is used
    -- again after its successor. NULL: the session is in oauth_sessions, or was imported.
    family_hash BYTES,
    -- Refresh token from which it was issued, until it is used. NULL: the first token, or a used
    -- one.
    parent_nid BIGINT,
    -- Time until which it may still be exchanged although another token from the same exchange was
    -- used first. NULL: none was.
    grace_until_ts BIGINT,
    -- Time at which it was exchanged. NULL: it was not.
    used_ts BIGINT
);
CREATE INDEX refresh_tokens_by_device ON refresh_tokens (user_id, device_id);
CREATE INDEX refresh_tokens_by_family ON refresh_tokens (family_hash) WHERE family_hash IS NOT NULL;
CREATE INDEX refresh_tokens_by_parent ON refresh_tokens (parent_nid) WHERE parent_nid IS NOT NULL;

-- Tokens that sign in a second client once (m.login.token). Written by
-- storage/login/login_tokens.py.
CREATE TABLE login_tokens (
    -- SHA-256 of the token.
    token_hash BYTES NOT NULL PRIMARY KEY,
    -- The local user.
    user_id TEXT NOT NULL,
    -- Time at which it expires.
    expires_ts BIGINT NOT NULL,
    -- Sign-in at the identity provider for which it stands: JSON. NULL: none.
    upstream_login TEXT,
    -- Key of that sign-in: provider, space, session ID. NULL: the provider names no session.
    upstream_key TEXT,
    -- `accounts.credential_epoch` when it was issued.
    credential_epoch BIGINT NOT NULL DEFAULT 0
) CLUSTERED;
CREATE INDEX login_tokens_by_age ON login_tokens (expires_ts);
CREATE INDEX login_tokens_by_upstream_key ON login_tokens (upstream_key)
    WHERE upstream_key IS NOT NULL;
CREATE INDEX login_tokens_by_user ON login_tokens (user_id);

-- OpenID tokens with which users identify themselves to other services. Written by
-- storage/login/openid_tokens.py.
CREATE TABLE openid_tokens (
    -- SHA-256 of the token.
    token_hash BYTES NOT NULL PRIMARY KEY,
    -- The local user.
    user_id TEXT NOT NULL,
    -- Time at which it expires.
    expires_ts BIGINT NOT NULL
);
CREATE INDEX openid_tokens_by_expiry ON openid_tokens (expires_ts);
CREATE INDEX openid_tokens_by_user ON openid_tokens (user_id);

-- Sessions of user-interactive authentication. Written by storage/login/uia.py.
CREATE TABLE uia_sessions (
    -- SHA-256 of the session ID, in hexadecimal.
    session_hash TEXT NOT NULL PRIMARY KEY,
    -- Time of creation.
    created_ts BIGINT NOT NULL,
    -- Method and path of the request. The session serves no other.
    operation TEXT NOT NULL,
    -- The user who has to authenticate. NULL: none, for example at registration.
    user_id TEXT,
    -- Completed stages and their results: JSON object.
    completed TEXT NOT NULL,
    -- Result of the finished operation, for a repeated request: JSON. NULL: not finished.
    result TEXT
);
CREATE INDEX uia_sessions_by_age ON uia_sessions (created_ts);
CREATE INDEX uia_sessions_by_user ON uia_sessions (user_id) WHERE user_id IS NOT NULL;

-- Last successful user-interactive authentication on each device. Written by storage/login/uia.py.
CREATE TABLE uia_confirmations (
    -- The local user.
    user_id TEXT NOT NULL,
    -- The device.
    device_id TEXT NOT NULL,
    -- Time of the authentication.
    confirmed_ts BIGINT NOT NULL,
    PRIMARY KEY (user_id, device_id)
) CLUSTERED;

-- Passwords that users create for one client each. Written by
-- storage/login/application_passwords.py.
CREATE TABLE application_passwords (
    -- Identifier. It is part of the password, so that a sign-in checks one hash only.
    password_id TEXT NOT NULL PRIMARY KEY,
    -- The local user.
    user_id TEXT NOT NULL,
    -- Name that the user gave it.
    name TEXT NOT NULL,
    -- Modular crypt string.
    password_hash TEXT NOT NULL,
    -- Time of creation.
    created_ts BIGINT NOT NULL,
    -- Time at which it expires. NULL: never.
    expires_ts BIGINT,
    -- Time of the last sign-in. NULL: never used.
    used_ts BIGINT
) CLUSTERED;
CREATE INDEX application_passwords_by_expiry ON application_passwords (expires_ts)
    WHERE expires_ts IS NOT NULL;
CREATE UNIQUE INDEX application_passwords_by_user ON application_passwords (user_id, name);

-- Devices that signed in with an application password. Written by
-- storage/login/application_passwords.py.
CREATE TABLE application_password_sessions (
    -- The local user.
    user_id TEXT NOT NULL,
    -- The device.
    device_id TEXT NOT NULL,
    -- The application password.
    password_id TEXT NOT NULL,
    PRIMARY KEY (user_id, device_id)
) CLUSTERED;

-- Browsers that are signed in to the server's own pages. Written by
-- storage/login/browser_sessions.py.
CREATE TABLE browser_sessions (
    -- SHA-256 of the cookie.
    token_hash BYTES NOT NULL PRIMARY KEY,
    -- The local user.
    user_id TEXT NOT NULL,
    -- Time at which the user last authenticated.
    authenticated_ts BIGINT NOT NULL,
    -- Time at which the session expires.
    expires_ts BIGINT NOT NULL,
    -- Sign-in at an identity provider by which the user came: JSON. NULL: none.
    upstream_login TEXT,
    -- The provider's ID of that sign-in, by which a logout at the provider finds the row. NULL:
    -- none.
    upstream_session_id TEXT
) CLUSTERED;
CREATE INDEX browser_sessions_by_age ON browser_sessions (expires_ts);
CREATE INDEX browser_sessions_by_upstream_session ON browser_sessions (upstream_session_id)
    WHERE upstream_session_id IS NOT NULL;
CREATE INDEX browser_sessions_by_user ON browser_sessions (user_id);

-- Permissions to replace cross-signing keys without further authentication, given on the account
-- page. Written by storage/oauth/oauth.py.
CREATE TABLE cross_signing_resets (
    -- The local user.
    user_id TEXT NOT NULL PRIMARY KEY,
    -- Time at which the permission ends.
    expires_ts BIGINT NOT NULL
);

-- Rendezvous sessions, by which a device signs in another one (MSC4108): the latest message.
-- Written by storage/login/rendezvous.py.
CREATE TABLE rendezvous_sessions (
    -- SHA-256 of the session ID.
    id_hash BYTES NOT NULL PRIMARY KEY,
    -- The message, which the server cannot read.
    data BYTES NOT NULL,
    -- Entity tag: changes with each write.
    etag TEXT NOT NULL,
    -- Time of the last write.
    written_ts BIGINT NOT NULL,
    -- Time at which the session expires.
    expires_ts BIGINT NOT NULL
) CLUSTERED;
CREATE INDEX rendezvous_sessions_by_age ON rendezvous_sessions (expires_ts);


----------------------------------------------------------------------------------------------------
-- OAuth 2.0 provider
----------------------------------------------------------------------------------------------------

-- Registered clients. Written by storage/oauth/oauth.py.
CREATE TABLE oauth_clients (
    -- Client ID: derived from the hash of the metadata, so that the same registration gets the same
    -- ID.
    client_id TEXT NOT NULL PRIMARY KEY,
    -- Client metadata as registered: JSON.
    metadata TEXT NOT NULL,
    -- Time of registration.
    created_ts BIGINT NOT NULL,
    -- Time of the last use.
    last_used_ts BIGINT NOT NULL,
    -- Time at which a user first authorised it. NULL: never; such a client is deleted soon.
    authorized_ts BIGINT
);
CREATE INDEX oauth_clients_by_age ON oauth_clients (last_used_ts);
CREATE INDEX oauth_clients_never_authorized ON oauth_clients (last_used_ts)
    WHERE authorized_ts IS NULL;

-- Authorization codes. A used code stays until it expires, so that its reuse is detected. Written
-- by storage/oauth/oauth.py.
CREATE TABLE oauth_codes (
    -- SHA-256 of the code.
    code_hash BYTES NOT NULL PRIMARY KEY,
    -- The local user.
    user_id TEXT NOT NULL,
    -- The client.
    client_id TEXT NOT NULL,
    -- The device that will be created.
    device_id TEXT NOT NULL,
    -- Granted scope.
    scope TEXT NOT NULL,
    -- Redirect URI of the request.
    redirect_uri TEXT NOT NULL,
    -- PKCE code challenge.
    code_challenge TEXT NOT NULL,
    -- Time at which it expires.
    expires_ts BIGINT NOT NULL,
    -- `oauth_sessions.family_hash` of the session that it was exchanged for; empty: the exchange
    -- was refused. NULL: not used.
    used_for_family BYTES,
    -- Sign-in at an identity provider of the user who authorised the client: JSON. NULL: none.
    upstream_login TEXT,
    -- Key of that sign-in, as in login_tokens. NULL: none, or the provider names no session.
    upstream_key TEXT
) CLUSTERED;
CREATE INDEX oauth_codes_by_age ON oauth_codes (expires_ts);
CREATE INDEX oauth_codes_by_client ON oauth_codes (client_id);
CREATE INDEX oauth_codes_by_upstream_key ON oauth_codes (upstream_key)
    WHERE upstream_key IS NOT NULL;
CREATE INDEX oauth_codes_by_user ON oauth_codes (user_id);

-- Devices that signed in by OAuth 2.0. Written by storage/oauth/oauth.py.
CREATE TABLE oauth_sessions (
    -- The local user.
    user_id TEXT NOT NULL,
    -- The device.
    device_id TEXT NOT NULL,
    -- The client.
    client_id TEXT NOT NULL,
    -- Granted scope.
    scope TEXT NOT NULL,
    -- SHA-256 of the common start of all refresh tokens of the session.
    family_hash BYTES NOT NULL,
    PRIMARY KEY (user_id, device_id)
);
CREATE INDEX oauth_sessions_by_client ON oauth_sessions (client_id);
CREATE UNIQUE INDEX oauth_sessions_by_family ON oauth_sessions (family_hash);

-- Pending device authorization grants (RFC 8628). Written by storage/oauth/device_grants.py.
CREATE TABLE oauth_device_grants (
    -- SHA-256 of the device code.
    code_hash BYTES NOT NULL PRIMARY KEY,
    -- Code that the user types.
    user_code TEXT NOT NULL UNIQUE,
    -- The client.
    client_id TEXT NOT NULL,
    -- The device that will be created.
    device_id TEXT NOT NULL,
    -- Requested scope.
    scope TEXT NOT NULL,
    -- Time at which it expires.
    expires_ts BIGINT NOT NULL,
    -- Milliseconds that the client has to wait between polls.
    interval_ms BIGINT NOT NULL,
    -- Time of the last poll.
    last_poll_ts BIGINT NOT NULL,
    -- The user who decided. NULL: undecided.
    user_id TEXT,
    -- 1 allowed, 0 denied. NULL: undecided.
    allowed INTEGER,
    -- Sign-in at an identity provider of the user who decided: JSON. NULL: none.
    upstream_login TEXT,
    -- Key of that sign-in, as in login_tokens. NULL: none, or the provider names no session.
    upstream_key TEXT
) CLUSTERED;
CREATE INDEX oauth_device_grants_by_age ON oauth_device_grants (expires_ts);
CREATE INDEX oauth_device_grants_by_client ON oauth_device_grants (client_id);
CREATE INDEX oauth_device_grants_by_upstream_key ON oauth_device_grants (upstream_key)
    WHERE upstream_key IS NOT NULL;
CREATE INDEX oauth_device_grants_by_user ON oauth_device_grants (user_id);


----------------------------------------------------------------------------------------------------
-- Identity providers
----------------------------------------------------------------------------------------------------

-- Links between users of identity providers and accounts. Written by
-- storage/upstream/external_ids.py.
CREATE TABLE external_ids (
    -- The provider's ID in the configuration.
    provider TEXT NOT NULL,
    -- The provider's identifier of the user, which it never reassigns.
    subject TEXT NOT NULL,
    -- The local user.
    user_id TEXT NOT NULL,
    -- Time at which the link was made.
    linked_ts BIGINT NOT NULL,
    -- Time since which the account is locked because the directory no longer lists the user. NULL:
    -- it does.
    removed_ts BIGINT,
    -- Hash of the name that the directory gave at the last synchronisation: only a changed name is
    -- taken over. NULL: none yet.
    synced_name_hash TEXT,
    -- Hash of the addresses that it gave, for the same purpose. NULL: none yet.
    synced_addresses_hash TEXT,
    PRIMARY KEY (provider, subject)
) CLUSTERED;
CREATE UNIQUE INDEX external_ids_by_user ON external_ids (user_id, provider);

-- Sign-ins at identity providers that are under way. Written by storage/upstream/login_flows.py.
CREATE TABLE upstream_flows (
    -- Identifier, for example the OAuth `state`.
    flow_id TEXT NOT NULL PRIMARY KEY,
    -- Current step. A flow serves only this step.
    step TEXT NOT NULL,
    -- SHA-256 of the cookie of the browser that may continue.
    browser_hash BYTES NOT NULL,
    -- Time at which it expires.
    expires_ts BIGINT NOT NULL,
    -- Data of the step: JSON.
    content TEXT NOT NULL,
    -- Key of the sign-in at the provider, as in login_tokens. NULL: not signed in yet.
    upstream_key TEXT,
    -- Key of the user: provider, space, subject. NULL: not signed in yet.
    user_key TEXT
) CLUSTERED;
CREATE INDEX upstream_flows_by_age ON upstream_flows (expires_ts);
CREATE INDEX upstream_flows_by_browser ON upstream_flows (browser_hash);
CREATE INDEX upstream_flows_by_user_key ON upstream_flows (user_key) WHERE user_key IS NOT NULL;
CREATE INDEX upstream_flows_by_upstream_key ON upstream_flows (upstream_key)
    WHERE upstream_key IS NOT NULL;

-- The sign-in at an identity provider by which each device signed in, for logouts that start at the
-- provider. Written by storage/upstream/sessions.py.
CREATE TABLE upstream_sessions (
    -- The local user.
    user_id TEXT NOT NULL,
    -- The device.
    device_id TEXT NOT NULL,
    -- The provider.
    provider TEXT NOT NULL,
    -- The provider's identifier of the user.
    subject TEXT NOT NULL,
    -- The provider's ID of the sign-in. NULL: it names none.
    session_id TEXT,
    PRIMARY KEY (user_id, device_id)
) CLUSTERED;
CREATE INDEX upstream_sessions_by_session ON upstream_sessions (provider, session_id);
CREATE INDEX upstream_sessions_by_subject ON upstream_sessions (provider, subject);

-- Sign-ins that ended at a provider within the last minutes: flows that started by them are
-- refused. Written by storage/upstream/ended_sessions.py.
CREATE TABLE ended_upstream_sessions (
    -- Key as in login_tokens; or a prefix of keys, with a dot at its end; or the provider alone.
    upstream_key TEXT NOT NULL,
    -- The user whom the provider named. '': it named none.
    subject TEXT NOT NULL,
    -- Time of the logout.
    ended_ts BIGINT NOT NULL,
    PRIMARY KEY (upstream_key, subject)
);
CREATE INDEX ended_upstream_sessions_by_time ON ended_upstream_sessions (ended_ts);

-- SAML assertions that were used, so that none is used twice. Written by
-- storage/upstream/login_flows.py.
CREATE TABLE used_saml_assertions (
    -- ID of the assertion.
    assertion_id TEXT NOT NULL PRIMARY KEY,
    -- Time from which on it would be refused anyway.
    expires_ts BIGINT NOT NULL
) CLUSTERED;
CREATE INDEX used_saml_assertions_by_age ON used_saml_assertions (expires_ts);

-- OpenID Connect logout tokens that were used, so that none is used twice. Written by
-- storage/upstream/login_flows.py.
CREATE TABLE used_logout_tokens (
    -- SHA-256 of the provider and the token's ID.
    digest BYTES NOT NULL PRIMARY KEY,
    -- Time from which on it would be refused anyway.
    expires_ts BIGINT NOT NULL
);
CREATE INDEX used_logout_tokens_by_age ON used_logout_tokens (expires_ts);


----------------------------------------------------------------------------------------------------
-- E-mail addresses and phone numbers
----------------------------------------------------------------------------------------------------

-- E-mail addresses and phone numbers of accounts. Written by storage/threepids/threepids.py.
CREATE TABLE threepids (
    -- `email` or `msisdn`.
    medium TEXT NOT NULL,
    -- The address in its canonical form: e-mail addresses in lower case.
    address TEXT NOT NULL,
    -- The local user.
    user_id TEXT NOT NULL,
    -- Time at which the user proved to own it.
    validated_ts BIGINT NOT NULL,
    -- Time at which it was added.
    added_ts BIGINT NOT NULL,
    PRIMARY KEY (medium, address)
) CLUSTERED;
CREATE INDEX threepids_by_user ON threepids (user_id);

-- Identity providers that state that an address belongs to its user. The address is removed with
-- the last of them. An address without a row was validated by the user or set by an administrator.
-- Written by storage/threepids/threepids.py.
CREATE TABLE threepid_assertions (
    -- As in threepids.
    medium TEXT NOT NULL,
    -- As in threepids.
    address TEXT NOT NULL,
    -- The provider's ID in the configuration.
    provider TEXT NOT NULL,
    PRIMARY KEY (medium, address, provider)
) CLUSTERED;

-- Validations of addresses that are under way. Written by storage/threepids/threepids.py.
CREATE TABLE threepid_validations (
    -- Session ID.
    sid TEXT NOT NULL PRIMARY KEY,
    -- `register`, `add` or `password`. The validation serves no other purpose.
    purpose TEXT NOT NULL,
    -- `email` or `msisdn`.
    medium TEXT NOT NULL,
    -- The address.
    address TEXT NOT NULL,
    -- SHA-256 of the client secret, in hexadecimal.
    client_secret_hash TEXT NOT NULL,
    -- SHA-256 of the token in the latest message. NULL: none was sent, since the address is not
    -- eligible.
    token_hash BYTES,
    -- The client's `send_attempt`.
    send_attempt BIGINT NOT NULL,
    -- Page to show afterwards. NULL: none.
    next_link TEXT,
    -- Time of the request.
    created_ts BIGINT NOT NULL,
    -- Time at which the token was confirmed. NULL: not yet.
    validated_ts BIGINT,
    -- Number of wrong codes that were entered.
    attempts INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX threepid_validations_by_age ON threepid_validations (created_ts);
CREATE UNIQUE INDEX threepid_validations_by_client ON threepid_validations (client_secret_hash,
    address, medium, purpose);

-- Addresses that this server has bound at identity servers, so that they can be unbound. Written by
-- storage/threepids/identity_bindings.py.
CREATE TABLE identity_bindings (
    -- The local user.
    user_id TEXT NOT NULL,
    -- `email` or `msisdn`.
    medium TEXT NOT NULL,
    -- The address.
    address TEXT NOT NULL,
    -- Host, and port if there is one.
    id_server TEXT NOT NULL,
    -- Time of the next attempt to unbind the address of a deactivated account. NULL: the account is
    -- active.
    unbind_ts BIGINT,
    -- Number of failed attempts.
    attempts INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (user_id, medium, address, id_server)
) CLUSTERED;
CREATE INDEX identity_bindings_to_unbind ON identity_bindings (unbind_ts)
    WHERE unbind_ts IS NOT NULL;

-- Text messages per day, for the daily limit. Written by storage/threepids/sms.py.
CREATE TABLE sms_counts (
    -- Days since 1970, UTC.
    day BIGINT NOT NULL PRIMARY KEY,
    -- Number of messages.
    messages BIGINT NOT NULL
);

-- Queue of e-mails. Written by storage/email/outbox.py.
CREATE TABLE email_outbox (
    -- Internal number of the e-mail.
    email_nid ROWID NOT NULL PRIMARY KEY,
    -- Time before which it is not sent. A node that sends it postpones this time, so that no other
    -- node sends it.
    due_ts BIGINT NOT NULL,
    -- Time of creation.
    created_ts BIGINT NOT NULL,
    -- Number of failed attempts.
    attempts INTEGER NOT NULL,
    -- E-mail address.
    recipient TEXT NOT NULL,
    -- The full message.
    message BYTES NOT NULL,
    -- Pusher that reports unread messages. NULL: another kind of e-mail.
    pusher_nid BIGINT,
    -- Stream position up to which that pusher's previous e-mail reported. NULL: another kind of
    -- e-mail.
    previous_position BIGINT
);
CREATE INDEX email_outbox_due ON email_outbox (due_ts);

-- Events that are quoted in queued e-mails. An e-mail is deleted when one of its events loses its
-- content. Written by storage/email/outbox.py.
CREATE TABLE email_outbox_events (
    -- The event.
    event_nid BIGINT NOT NULL,
    -- The e-mail.
    email_nid BIGINT NOT NULL,
    PRIMARY KEY (event_nid, email_nid)
) CLUSTERED;
CREATE INDEX email_outbox_events_by_email ON email_outbox_events (email_nid);


----------------------------------------------------------------------------------------------------
-- Profiles, account data and presence
----------------------------------------------------------------------------------------------------

-- Profile fields of local users. Written by storage/profiles/profiles.py.
CREATE TABLE profiles (
    -- The local user.
    user_id TEXT NOT NULL,
    -- Name of the field: `displayname`, `avatar_url`, `m.tz` and so on.
    field TEXT NOT NULL,
    -- Value: JSON.
    value BYTES NOT NULL,
    -- Stream position of the last change.
    position BIGINT NOT NULL,
    PRIMARY KEY (user_id, field)
);
CREATE INDEX profiles_by_position ON profiles (position);

-- Profile fields that were removed; the latest of each user. Written by
-- storage/profiles/profiles.py.
CREATE TABLE profile_removals (
    -- The local user.
    user_id TEXT NOT NULL,
    -- Name of the field.
    field TEXT NOT NULL,
    -- Stream position of the removal.
    position BIGINT NOT NULL,
    PRIMARY KEY (user_id, field)
);
CREATE INDEX profile_removals_by_position ON profile_removals (position);

-- Users whose membership events still have to be updated after a change of profile. Written by
-- storage/profiles/profiles.py.
CREATE TABLE profile_propagation_queue (
    -- The local user.
    user_id TEXT NOT NULL PRIMARY KEY,
    -- Stream position of the change.
    position BIGINT NOT NULL
);

-- Account data, global and per room. Tags are the type m.tag. Written by
-- storage/account_data/account_data.py.
CREATE TABLE account_data (
    -- The local user.
    user_id TEXT NOT NULL,
    -- The room. '': global account data.
    room_id TEXT NOT NULL,
    -- Type.
    type TEXT NOT NULL,
    -- Content: JSON object; `{}` if deleted.
    content BYTES NOT NULL,
    -- 1: deleted; the row stays for some time, so that other devices are notified.
    deleted INTEGER NOT NULL DEFAULT 0,
    -- Stream position of the last change.
    position BIGINT NOT NULL,
    PRIMARY KEY (user_id, room_id, type)
);
-- Changes of push rules, for other nodes.
CREATE INDEX account_data_push_rules ON account_data (position)
    WHERE type = 'm.push_rules' AND room_id = '';
-- Changes of ignored users and invite permissions, which change unread counts.
CREATE INDEX account_data_ignored ON account_data (position)
    WHERE room_id = '' AND type IN ('m.ignored_user_list', 'm.invite_permission_config',
        'org.matrix.msc4380.invite_permission_config',
        'org.matrix.msc4155.invite_permission_config');
CREATE INDEX account_data_by_position ON account_data (user_id, position);
CREATE INDEX account_data_deleted ON account_data (user_id, position) WHERE deleted = 1;

-- Size of each user's account data, which is limited. Written by
-- storage/account_data/account_data.py.
CREATE TABLE account_data_usage (
    -- The local user.
    user_id TEXT NOT NULL PRIMARY KEY,
    -- Number of entries that are not deleted.
    entries BIGINT NOT NULL,
    -- Total size of their contents.
    bytes BIGINT NOT NULL,
    -- Number of deleted entries that are still stored.
    deleted BIGINT NOT NULL DEFAULT 0
) CLUSTERED;

-- Filters for /sync and /messages. A filter never changes. Written by storage/filters/filters.py.
CREATE TABLE filters (
    -- The local user.
    user_id TEXT NOT NULL,
    -- Number of the filter; increases for each user.
    filter_id BIGINT NOT NULL,
    -- The filter: canonical JSON.
    definition TEXT NOT NULL,
    -- SHA-256 of the definition, by which an equal filter is found. Empty: a placeholder that only
    -- keeps the number. NULL does not occur.
    digest BYTES,
    -- Time of the last upload or use, not exact.
    last_used_ts BIGINT NOT NULL DEFAULT 0,
    -- 1: used since it was first uploaded. Unused filters are deleted first.
    is_used INTEGER NOT NULL DEFAULT 1,
    PRIMARY KEY (user_id, filter_id)
);
CREATE UNIQUE INDEX filters_by_digest ON filters (user_id, digest);

-- Last presence of each user. Written when it changes, so that a restart keeps status messages.
-- Written by storage/presence/presence.py.
CREATE TABLE presence_states (
    -- The local user.
    user_id TEXT NOT NULL PRIMARY KEY,
    -- `online`, `unavailable` or `offline`.
    state TEXT NOT NULL,
    -- Status message. NULL: none.
    status_msg TEXT,
    -- Time of the last activity. NULL: unknown.
    last_active_ts BIGINT,
    -- Position of the change in the ephemeral stream; 0: it still has to be announced.
    position BIGINT NOT NULL
);
CREATE INDEX presence_states_by_position ON presence_states (position);
CREATE INDEX presence_states_online ON presence_states (user_id) WHERE state <> 'offline';

-- Thread subscriptions (MSC4306). Written by storage/rooms/thread_subscriptions.py.
CREATE TABLE thread_subscriptions (
    -- The local user.
    user_id TEXT NOT NULL,
    -- The room.
    room_id TEXT NOT NULL,
    -- Event ID of the thread root.
    root TEXT NOT NULL,
    -- 0: the user has unsubscribed.
    subscribed INTEGER NOT NULL,
    -- 1: the client subscribed because the user was mentioned.
    automatic INTEGER NOT NULL,
    -- Stream position of the last change.
    position BIGINT NOT NULL,
    PRIMARY KEY (user_id, room_id, root)
) CLUSTERED;
CREATE INDEX thread_subscriptions_by_position ON thread_subscriptions (user_id, position);
CREATE INDEX thread_subscriptions_by_thread ON thread_subscriptions (room_id, root)
    WHERE subscribed = 1;


----------------------------------------------------------------------------------------------------
-- Devices
----------------------------------------------------------------------------------------------------

-- Devices of local users. Written by storage/devices/devices.py.
CREATE TABLE devices (
    -- The local user.
    user_id TEXT NOT NULL,
    -- The device ID.
    device_id TEXT NOT NULL,
    -- Internal number of the device. A device that is created again under the same ID gets another
    -- number.
    device_nid BIGINT NOT NULL DEFAULT 0,
    -- Display name. NULL: none.
    display_name TEXT,
    -- Time of creation. Transaction IDs of an earlier device with the same ID do not count.
    created_ts BIGINT NOT NULL,
    -- Time of the last request, some minutes late. NULL: never.
    last_seen_ts BIGINT,
    -- IP address of that request. NULL: unknown, or deleted after the retention time.
    last_seen_ip TEXT,
    -- User agent of that request. NULL: as for last_seen_ip.
    last_seen_user_agent TEXT,
    -- Hour since 1970 of last_seen_ts while address or user agent are stored. NULL: neither is.
    last_seen_hour BIGINT,
    PRIMARY KEY (user_id, device_id)
);
-- The columns that the delivery of a to-device message needs.
CREATE UNIQUE INDEX devices_by_id ON devices (user_id, device_id, device_nid);
-- Devices whose address and user agent are past the retention time.
CREATE INDEX devices_by_hour ON devices (last_seen_hour) WHERE last_seen_hour IS NOT NULL;
CREATE INDEX devices_by_nid ON devices (device_nid);

-- Latest change of each user's device list, local and remote. Written by
-- storage/devices/devices.py.
CREATE TABLE device_list_positions (
    -- The user.
    user_id TEXT NOT NULL PRIMARY KEY,
    -- Stream position of the change.
    position BIGINT NOT NULL
);
CREATE INDEX device_list_positions_by_position ON device_list_positions (position);

-- Latest changes of local users' devices, as they are sent to other servers (m.device_list_update).
-- Written by storage/devices/device_list_log.py.
CREATE TABLE device_list_log (
    -- The local user.
    user_id TEXT NOT NULL,
    -- Stream ID of the change: its position.
    stream_id BIGINT NOT NULL,
    -- Stream ID of the user's previous change; 0: there was none.
    prev_id BIGINT NOT NULL,
    -- The device. NULL: the cross-signing keys.
    device_id TEXT,
    PRIMARY KEY (user_id, stream_id)
) CLUSTERED;
CREATE INDEX device_list_log_by_stream ON device_list_log (stream_id);

-- Dehydrated devices (MSC3814), one per user. Keys and to-device messages are stored as for every
-- device. Written by storage/encryption/dehydrated_devices.py.
CREATE TABLE dehydrated_devices (
    -- The local user.
    user_id TEXT NOT NULL PRIMARY KEY,
    -- The device.
    device_id TEXT NOT NULL,
    -- Encrypted by the client: JSON.
    device_data BYTES NOT NULL
);

-- Remote users whose devices are cached. Written by storage/encryption/remote_devices.py.
CREATE TABLE remote_device_lists (
    -- The remote user.
    user_id TEXT NOT NULL PRIMARY KEY,
    -- Stream ID of the last known change.
    stream_id BIGINT NOT NULL,
    -- 1: a change was missed, and the list has to be fetched again.
    is_stale INTEGER NOT NULL
);
CREATE INDEX remote_device_lists_stale ON remote_device_lists (user_id) WHERE is_stale = 1;

-- Cached devices of remote users. Written by storage/encryption/remote_devices.py.
CREATE TABLE remote_devices (
    -- The remote user.
    user_id TEXT NOT NULL,
    -- The device.
    device_id TEXT NOT NULL,
    -- Identity keys: canonical JSON without `unsigned`.
    keys BYTES NOT NULL,
    -- Display name. NULL: none is known.
    display_name TEXT,
    PRIMARY KEY (user_id, device_id)
);


----------------------------------------------------------------------------------------------------
-- End-to-end encryption
----------------------------------------------------------------------------------------------------

-- Identity keys of local devices. Written by storage/encryption/device_keys.py.
CREATE TABLE device_keys (
    -- The local user.
    user_id TEXT NOT NULL,
    -- The device.
    device_id TEXT NOT NULL,
    -- The keys as uploaded: canonical JSON without `unsigned`.
    keys BYTES NOT NULL,
    PRIMARY KEY (user_id, device_id)
);

-- Fallback keys, which are claimed when no one-time key is left. Written by
-- storage/encryption/device_keys.py.
CREATE TABLE fallback_keys (
    -- The local user.
    user_id TEXT NOT NULL,
    -- The device.
    device_id TEXT NOT NULL,
    -- The algorithm.
    algorithm TEXT NOT NULL,
    -- ID of the key.
    key_id TEXT NOT NULL,
    -- The key: JSON.
    content BYTES NOT NULL,
    -- 1: it was claimed.
    used INTEGER NOT NULL,
    PRIMARY KEY (user_id, device_id, algorithm)
);

-- One-time keys in blocks: keys that were uploaded together. A block never changes. Its keys are
-- claimed from the first on; one_time_key_claims counts them. Written by
-- storage/encryption/one_time_keys.py.
CREATE TABLE one_time_key_blocks (
    -- The local user.
    user_id TEXT NOT NULL,
    -- The device.
    device_id TEXT NOT NULL,
    -- The algorithm.
    algorithm TEXT NOT NULL,
    -- Internal number of the block; increases with each upload.
    block_nid BIGINT NOT NULL,
    -- Number of keys in the block.
    key_count INTEGER NOT NULL,
    -- Length in bytes of each key in `keys`. 0: the block has no keys, and makes the device upload
    -- new ones (storage/maintenance/after_restore.py).
    width INTEGER NOT NULL,
    -- IDs of the keys: JSON array.
    key_ids TEXT NOT NULL,
    -- The keys, each as `"ID":CONTENT` and padded with spaces to `width`.
    keys BYTES NOT NULL,
    PRIMARY KEY (user_id, device_id, algorithm, block_nid)
) LOW_FILLFACTOR;

-- Number of claimed keys of each block. Stored apart from the block, so that a claim writes only a
-- few bytes. Written by storage/encryption/one_time_keys.py.
CREATE TABLE one_time_key_claims (
    -- The block.
    block_nid ROWID NOT NULL PRIMARY KEY,
    -- Time of the latest claim; 0: none.
    claimed_ts BIGINT NOT NULL,
    -- Number of keys that were claimed.
    claimed INTEGER NOT NULL
) LOW_FILLFACTOR;

-- Digests of claimed keys whose block was deleted, so that a repeated upload does not offer them
-- again. Written by storage/encryption/one_time_keys.py.
CREATE TABLE used_one_time_keys (
    -- The local user.
    user_id TEXT NOT NULL,
    -- The device.
    device_id TEXT NOT NULL,
    -- For each key, the latest last: time of the claim (8 bytes) and digest of the key (16 bytes).
    digests BYTES NOT NULL,
    PRIMARY KEY (user_id, device_id)
);

-- Cross-signing keys of local users. Written by storage/encryption/cross_signing.py.
CREATE TABLE cross_signing_keys (
    -- The local user.
    user_id TEXT NOT NULL,
    -- `master`, `self_signing` or `user_signing`.
    usage TEXT NOT NULL,
    -- The public key: unpadded base64. It is also the key's name.
    public_key TEXT NOT NULL,
    -- The key as uploaded: JSON.
    content BYTES NOT NULL,
    PRIMARY KEY (user_id, usage)
);

-- Signatures of device keys and cross-signing keys that were added after the keys. Written by
-- storage/encryption/cross_signing.py.
CREATE TABLE key_signatures (
    -- Owner of the signed key.
    target_user_id TEXT NOT NULL,
    -- The signed key: a device ID or a public key.
    target_key TEXT NOT NULL,
    -- The local user who signed.
    signer_user_id TEXT NOT NULL,
    -- Key ID of the signature, `ed25519:…`.
    signer_key_id TEXT NOT NULL,
    -- The signature: unpadded base64.
    signature TEXT NOT NULL,
    PRIMARY KEY (target_user_id, target_key, signer_user_id, signer_key_id)
);
-- A user's own signatures are found without those of others.
CREATE INDEX key_signatures_by_owner ON key_signatures (target_user_id)
    WHERE signer_user_id = target_user_id;
CREATE INDEX key_signatures_by_signer ON key_signatures (signer_user_id, target_user_id);

-- Latest signature of a user on the keys of another user. Only the signer sees it. Written by
-- storage/encryption/cross_signing.py.
CREATE TABLE user_signature_positions (
    -- The local user who signed.
    signer_user_id TEXT NOT NULL,
    -- Owner of the signed key.
    target_user_id TEXT NOT NULL,
    -- Stream position of the signature.
    position BIGINT NOT NULL,
    PRIMARY KEY (signer_user_id, target_user_id)
) CLUSTERED;

-- Versions of room key backups. Written by storage/encryption/key_backups.py.
CREATE TABLE key_backups (
    -- The local user.
    user_id TEXT NOT NULL,
    -- The version.
    version BIGINT NOT NULL,
    -- The backup algorithm.
    algorithm TEXT NOT NULL,
    -- `auth_data` of the version: JSON.
    auth_data BYTES NOT NULL,
    -- Increases with every change of the keys.
    etag BIGINT NOT NULL,
    -- Number of keys.
    key_count BIGINT NOT NULL,
    -- 1: deleted; the keys are removed in small steps.
    deleted INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (user_id, version)
);
CREATE INDEX key_backups_to_remove ON key_backups (user_id, version)
    WHERE deleted = 1 AND key_count > 0;

-- Backed up room keys, which the server cannot read. Written by storage/encryption/key_backups.py.
CREATE TABLE backed_up_keys (
    -- The local user.
    user_id TEXT NOT NULL,
    -- Version of the backup.
    version BIGINT NOT NULL,
    -- The room.
    room_id TEXT NOT NULL,
    -- The Megolm session.
    session_id TEXT NOT NULL,
    -- First message index that the key decrypts.
    first_message_index BIGINT NOT NULL,
    -- Number of times that the key was forwarded.
    forwarded_count BIGINT NOT NULL,
    -- 1: the device verified the sender of the key.
    is_verified INTEGER NOT NULL,
    -- The encrypted key: JSON.
    session_data BYTES NOT NULL,
    PRIMARY KEY (user_id, version, room_id, session_id)
);

-- To-device messages, until the device acknowledges them with its next sync token. Written by
-- storage/encryption/to_device.py.
CREATE TABLE to_device_messages (
    -- The recipient.
    device_nid BIGINT NOT NULL,
    -- Stream position of the message.
    position BIGINT NOT NULL,
    -- The event: JSON object of type, sender and content.
    content BYTES NOT NULL
);
CREATE UNIQUE INDEX to_device_messages_by_device ON to_device_messages (device_nid, position);

-- Messages up to this position are not delivered any more, and are deleted in small steps. Written
-- by storage/encryption/to_device.py.
CREATE TABLE to_device_floors (
    -- The recipient.
    device_nid BIGINT NOT NULL,
    -- Stream position.
    position BIGINT NOT NULL
);
CREATE UNIQUE INDEX to_device_floors_by_device ON to_device_floors (device_nid);

-- To-device messages that were sent to many devices at once. Those that are not fetched within
-- minutes are moved to to_device_messages. Written by storage/encryption/to_device_log.py.
CREATE TABLE to_device_log (
    -- Stream position of the first message. The others follow without a gap.
    first_position ROWID NOT NULL PRIMARY KEY,
    -- Time of sending.
    sent_ts BIGINT NOT NULL,
    -- For each message the device_nid (8 bytes, ascending), then for each the offset and then for
    -- each the length of its content in `contents` (4 bytes each). Messages may share a content.
    devices BYTES NOT NULL,
    -- The common start of all messages: type and sender.
    prefix BYTES NOT NULL,
    -- The contents, one after the other.
    contents BYTES NOT NULL
);


----------------------------------------------------------------------------------------------------
-- Sliding sync
----------------------------------------------------------------------------------------------------

-- States of sliding sync connections (MSC4186). A client that lost a response repeats its request
-- from the state before. Written by storage/sync/sliding_connections.py.
CREATE TABLE sliding_sync_connections (
    -- The local user.
    user_id TEXT NOT NULL,
    -- The device. '': a token without a device.
    device_id TEXT NOT NULL,
    -- The client's name of the connection. '': none.
    conn_id TEXT NOT NULL,
    -- Number of the state: part of the `pos` that the client holds.
    state_nid BIGINT NOT NULL,
    -- Time of the last use.
    last_used_ts BIGINT NOT NULL,
    -- What the client was sent: msgpack.
    state BYTES NOT NULL,
    PRIMARY KEY (user_id, device_id, conn_id, state_nid)
);
CREATE INDEX sliding_sync_connections_by_age ON sliding_sync_connections (last_used_ts);


----------------------------------------------------------------------------------------------------
-- Federation
----------------------------------------------------------------------------------------------------

-- Signing keys of other servers. Expired keys are stored too, to verify old signatures. Written by
-- storage/federation/server_keys.py.
CREATE TABLE server_keys (
    -- The server.
    server_name TEXT NOT NULL,
    -- Key ID.
    key_id TEXT NOT NULL,
    -- The Ed25519 key.
    public_key BYTES NOT NULL,
    -- Time until which signatures are valid.
    valid_until BIGINT NOT NULL,
    PRIMARY KEY (server_name, key_id)
) CLUSTERED;

-- The latest signed key response of each server, which this server returns as a notary. Written by
-- storage/federation/server_keys.py.
CREATE TABLE server_key_documents (
    -- The server.
    server_name TEXT NOT NULL PRIMARY KEY,
    -- The response as signed by the server: JSON.
    document BYTES NOT NULL,
    -- Time until which it is valid: as stated, but at most seven days after it was fetched.
    valid_until BIGINT NOT NULL,
    -- Time at which it was fetched.
    fetched_at BIGINT NOT NULL
);

-- Signed documents from others that this server follows, for example a member list: the last valid
-- one for each purpose. Written by storage/federation/signed_documents.py.
CREATE TABLE signed_documents (
    -- The purpose.
    purpose TEXT NOT NULL PRIMARY KEY,
    -- The document.
    document BYTES NOT NULL,
    -- Time at which it was fetched.
    fetched_at BIGINT NOT NULL
);

-- Other servers in a room. Written by storage/rooms/room_servers.py.
CREATE TABLE room_servers (
    -- The room.
    room_nid BIGINT NOT NULL,
    -- The server.
    server TEXT NOT NULL,
    -- Number of its joined users.
    joined_count BIGINT NOT NULL,
    -- Stream position at which the first of them joined. Older events are not sent to the server.
    joined_position BIGINT NOT NULL,
    PRIMARY KEY (room_nid, server)
) CLUSTERED;
CREATE INDEX room_servers_by_server ON room_servers (server);

-- Servers that are, or were, unreachable. A server that was never unreachable has no row. Written
-- by storage/federation/destinations.py.
CREATE TABLE destinations (
    -- The server.
    server TEXT NOT NULL PRIMARY KEY,
    -- Time since which requests fail. NULL: the server is reachable.
    failing_since_ts BIGINT,
    -- Time of the last attempt.
    last_attempt_ts BIGINT NOT NULL,
    -- Back-off in milliseconds after that attempt.
    backoff_ms BIGINT NOT NULL,
    -- Error of that attempt. NULL: none.
    error TEXT,
    -- Source of a report that the server is back; the sending node then tries at once: 1 the
    -- server, which sent a request to another node, 2 an operator; 0 none.
    activity_source INTEGER NOT NULL DEFAULT 0,
    -- Time until which the server, by its last response, asked not to be sent anything; 0: it did
    -- not.
    retry_after_ts BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX destinations_active_again ON destinations (server) WHERE activity_source > 0;

-- Rooms in which an unreachable server missed events. Written by
-- storage/federation/destinations.py.
CREATE TABLE destination_rooms (
    -- The server.
    server TEXT NOT NULL,
    -- The room.
    room_nid BIGINT NOT NULL,
    -- Stream position of the first missed event.
    position BIGINT NOT NULL,
    PRIMARY KEY (server, room_nid)
) CLUSTERED;

-- Local users of whose device list an unreachable server missed changes. Written by
-- storage/federation/destinations.py.
CREATE TABLE destination_users (
    -- The server.
    server TEXT NOT NULL,
    -- The local user.
    user_id TEXT NOT NULL,
    -- Stream ID of the first missed change.
    stream_id BIGINT NOT NULL,
    PRIMARY KEY (server, user_id)
) CLUSTERED;

-- To-device messages for other servers, until these have them. Written by
-- storage/encryption/outgoing_to_device.py.
CREATE TABLE outgoing_to_device (
    -- The server.
    server TEXT NOT NULL,
    -- Stream position of the message.
    position BIGINT NOT NULL,
    -- Content of the EDU: JSON.
    content BYTES NOT NULL,
    PRIMARY KEY (server, position)
);
CREATE INDEX outgoing_to_device_by_position ON outgoing_to_device (position);

-- To-device messages from other servers, so that a repeated message is delivered once. Written by
-- storage/encryption/outgoing_to_device.py.
CREATE TABLE received_to_device (
    -- User ID of the sender.
    sender TEXT NOT NULL,
    -- ID of the message.
    message_id TEXT NOT NULL,
    -- Time of arrival.
    received_ts BIGINT NOT NULL,
    -- Server that sent it.
    origin TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (sender, message_id)
) CLUSTERED;
CREATE INDEX received_to_device_by_age ON received_to_device (received_ts);
CREATE INDEX received_to_device_by_origin ON received_to_device (origin, received_ts);

-- Events from other servers that were acknowledged and cannot be processed yet, for example because
-- of missing predecessors. Written by storage/federation/inbox.py.
CREATE TABLE federation_inbox (
    -- Internal number of the entry.
    inbox_nid ROWID NOT NULL PRIMARY KEY,
    -- The room.
    room_nid BIGINT NOT NULL,
    -- Time of arrival.
    received_ts BIGINT NOT NULL,
    -- Number of failed attempts to fetch what is missing.
    attempts INTEGER NOT NULL DEFAULT 0,
    -- 1: the server that sent it was not in the room. Such events have a smaller quota.
    is_out_of_room INTEGER NOT NULL DEFAULT 0,
    -- Length of `pdu` in bytes.
    size INTEGER NOT NULL DEFAULT 0,
    -- The event.
    event_id TEXT NOT NULL,
    -- Server that sent it.
    origin TEXT NOT NULL,
    -- Registered domain of that server, which also has a quota.
    domain TEXT NOT NULL DEFAULT '',
    -- Policy server whose verdict it, or an earlier event of the room, waits for. NULL: none.
    policy_server TEXT,
    -- The event: JSON.
    pdu BYTES NOT NULL
);
-- The columns that the quotas need.
CREATE INDEX federation_inbox_quotas ON federation_inbox (origin, domain, is_out_of_room, size);
-- The columns that decide which event is processed next.
CREATE INDEX federation_inbox_order ON federation_inbox (room_nid, is_out_of_room, origin, attempts,
    inbox_nid);
-- The quotas of events that wait for policy servers.
CREATE INDEX federation_inbox_awaiting_policy ON federation_inbox (origin, room_nid, policy_server)
    WHERE policy_server IS NOT NULL;
CREATE UNIQUE INDEX federation_inbox_by_event ON federation_inbox (event_id);

-- Verdicts of policy servers on events that are not processed yet, so that each is requested only
-- once. Written by storage/federation/policy_server_verdicts.py.
CREATE TABLE policy_server_verdicts (
    -- The room.
    room_nid BIGINT NOT NULL,
    -- Key of the policy server in the room's state.
    public_key BYTES NOT NULL,
    -- The event.
    event_id TEXT NOT NULL,
    -- 1: allowed.
    allowed INTEGER NOT NULL,
    -- Time of the verdict.
    decided_ts BIGINT NOT NULL,
    PRIMARY KEY (room_nid, public_key, event_id)
) CLUSTERED;
CREATE INDEX policy_server_verdicts_by_age ON policy_server_verdicts (decided_ts);
CREATE INDEX policy_server_verdicts_by_room ON policy_server_verdicts (room_nid, decided_ts);


----------------------------------------------------------------------------------------------------
-- Media
----------------------------------------------------------------------------------------------------

-- Files of local users, and media IDs that are reserved. Written by storage/media/media.py.
CREATE TABLE media (
    -- The media ID.
    media_id TEXT NOT NULL PRIMARY KEY,
    -- User who uploaded the file or reserved the ID. '': the server itself, for example an image
    -- of a URL preview.
    user_id TEXT NOT NULL,
    -- SHA-256 of the content. NULL: the ID is only reserved.
    hash BYTES,
    -- Content type.
    type TEXT NOT NULL,
    -- Size in bytes.
    size BIGINT NOT NULL,
    -- File name. NULL: none was given.
    name TEXT,
    -- Time of upload or reservation.
    created_ts BIGINT NOT NULL,
    -- Time at which the reservation ends. NULL: the file was uploaded.
    expires_ts BIGINT,
    -- Time of the last download, to about an hour.
    last_access_ts BIGINT NOT NULL,
    -- 1: only served with an access token.
    authenticated INTEGER NOT NULL,
    -- 1: not served.
    quarantined INTEGER NOT NULL DEFAULT 0,
    -- The administrator; `system` if the content was quarantined already; `scanner`. NULL: not
    -- quarantined.
    quarantined_by TEXT,
    -- 1: neither quarantined nor deleted by age.
    protected INTEGER NOT NULL DEFAULT 0
);
-- Uploads of a user and their total size.
CREATE INDEX media_by_user ON media (user_id, created_ts, size);
CREATE INDEX media_by_access ON media (last_access_ts)
    WHERE hash IS NOT NULL AND quarantined = 0 AND protected = 0;
CREATE INDEX media_by_age ON media (created_ts)
    WHERE hash IS NOT NULL AND quarantined = 0 AND protected = 0;
CREATE INDEX media_by_hash ON media (hash);
CREATE INDEX media_reserved ON media (expires_ts, user_id) WHERE expires_ts IS NOT NULL;

-- Cached files of other servers. Written by storage/media/remote_media.py.
CREATE TABLE remote_media (
    -- The server.
    origin TEXT NOT NULL,
    -- The media ID.
    media_id TEXT NOT NULL,
    -- SHA-256 of the content.
    hash BYTES NOT NULL,
    -- Content type.
    type TEXT NOT NULL,
    -- Size in bytes.
    size BIGINT NOT NULL,
    -- File name. NULL: none was given.
    name TEXT,
    -- Time at which it was fetched.
    created_ts BIGINT NOT NULL,
    -- Time of the last download, to about an hour.
    last_access_ts BIGINT NOT NULL,
    -- 1: only served with an access token.
    authenticated INTEGER NOT NULL,
    -- 1: not served. The row prevents another fetch.
    quarantined INTEGER NOT NULL DEFAULT 0,
    -- As in media. NULL: not quarantined.
    quarantined_by TEXT,
    PRIMARY KEY (origin, media_id)
);
CREATE INDEX remote_media_by_access ON remote_media (last_access_ts) WHERE quarantined = 0;
CREATE INDEX remote_media_by_age ON remote_media (created_ts) WHERE quarantined = 0;
CREATE INDEX remote_media_by_hash ON remote_media (hash);

-- Contents in the object store. The name of an object is never used again. A row exists before its
-- object and until the object is deleted. Written by storage/media/object_store_journal.py.
CREATE TABLE media_objects (
    -- Name of the object.
    name TEXT NOT NULL PRIMARY KEY,
    -- SHA-256 of the content.
    hash BYTES NOT NULL,
    -- Size in bytes.
    size BIGINT NOT NULL,
    -- `uploading`; `stored`; `deleting`: the object still has to be deleted.
    state TEXT NOT NULL,
    -- Time until which a node uploads the object, unless it extends the time. 0: no node does.
    leased_until BIGINT NOT NULL
);
CREATE INDEX media_objects_by_hash ON media_objects (hash);
CREATE INDEX media_objects_uploading ON media_objects (leased_until) WHERE state = 'uploading';
CREATE INDEX media_objects_deleting ON media_objects (name) WHERE state = 'deleting';

-- Files, local and remote, that something references or has referenced. Written by
-- storage/media/references.py.
CREATE TABLE tracked_media (
    -- Internal number of the file.
    media_nid ROWID NOT NULL PRIMARY KEY,
    -- The server.
    origin TEXT NOT NULL,
    -- The media ID.
    media_id TEXT NOT NULL,
    -- Time since which nothing references it. NULL: it is referenced, or never was.
    unreferenced_ts BIGINT,
    -- Cause of the loss of the last reference: `unreferenced`, `retention`, `purge` or `forgotten`.
    cause TEXT NOT NULL DEFAULT 'unreferenced',
    -- 1: the uploader referenced it. Otherwise it may be an attachment of the uploader's encrypted
    -- messages.
    referenced_by_uploader INTEGER NOT NULL DEFAULT 0,
    UNIQUE (origin, media_id)
);
CREATE INDEX tracked_media_unreferenced ON tracked_media (unreferenced_ts)
    WHERE unreferenced_ts IS NOT NULL;

-- References from events to files. Written by storage/media/references.py.
CREATE TABLE media_event_references (
    -- The file.
    media_nid BIGINT NOT NULL,
    -- The event.
    event_nid BIGINT NOT NULL,
    -- The room.
    room_nid BIGINT NOT NULL,
    -- 0 shown in the event, 1 avatar of a member, 2 avatar of the room, 3 attached by the sender
    -- (MSC3911).
    role INTEGER NOT NULL,
    PRIMARY KEY (media_nid, event_nid)
) CLUSTERED;
CREATE INDEX media_event_references_by_room ON media_event_references (room_nid, event_nid);

-- References from profiles and account data to files. Written by storage/media/references.py.
CREATE TABLE media_setting_references (
    -- The local user.
    user_id TEXT NOT NULL,
    -- 0 profile field, 1 account data.
    kind INTEGER NOT NULL,
    -- Name of the field; or room ID ('' for global), a space, and type.
    name TEXT NOT NULL,
    -- The file.
    media_nid BIGINT NOT NULL,
    PRIMARY KEY (user_id, kind, name, media_nid)
) CLUSTERED;
CREATE INDEX media_setting_references_by_media ON media_setting_references (media_nid);

-- Queue of changes that may have removed references. Written by storage/media/references.py.
CREATE TABLE media_reference_rechecks (
    -- 0 an event lost its content, 1 no local user remembers a room, 2 an account was erased, 3 a
    -- setting changed.
    kind INTEGER NOT NULL,
    -- The event, room or file, as `kind` says; 0: none.
    nid BIGINT NOT NULL,
    -- The user. '': none.
    user_id TEXT NOT NULL,
    -- Progress: event_nid in a room, or time of an upload of a user.
    progress BIGINT NOT NULL,
    -- Cause, as in tracked_media.
    cause TEXT NOT NULL DEFAULT 'unreferenced',
    PRIMARY KEY (kind, nid, user_id)
) CLUSTERED;

-- Deleted files. Written by storage/media/removal.py.
CREATE TABLE deleted_media (
    -- Internal number of the deletion.
    deletion_nid ROWID NOT NULL PRIMARY KEY,
    -- Time of the deletion.
    deleted_ts BIGINT NOT NULL,
    -- The server.
    origin TEXT NOT NULL,
    -- The media ID.
    media_id TEXT NOT NULL,
    -- User who had uploaded it. NULL: a remote file.
    user_id TEXT,
    -- SHA-256 of the content.
    hash BYTES NOT NULL,
    -- Content type.
    type TEXT NOT NULL,
    -- Size in bytes.
    size BIGINT NOT NULL,
    -- Time of upload, or of fetching.
    created_ts BIGINT NOT NULL,
    -- Reason of the deletion, see storage/media/removal.py.
    reason TEXT NOT NULL,
    -- User who asked for it. NULL: a rule.
    by_user_id TEXT
);
CREATE INDEX deleted_media_by_uri ON deleted_media (origin, media_id);
CREATE INDEX deleted_media_by_time ON deleted_media (deleted_ts);

-- Log of quarantines, which nodes follow. Written by storage/media/quarantine.py.
CREATE TABLE quarantine_changes (
    -- Internal number of the change.
    change_nid ROWID NOT NULL PRIMARY KEY,
    -- The server.
    origin TEXT NOT NULL,
    -- The media ID.
    media_id TEXT NOT NULL,
    -- 1: quarantined; 0: released.
    quarantined INTEGER NOT NULL
);

-- Contents that administrators quarantined. They stay quarantined when they are uploaded again.
-- Written by storage/media/quarantine.py.
CREATE TABLE quarantined_contents (
    -- SHA-256 of the content.
    hash BYTES NOT NULL PRIMARY KEY
);

-- Remote files that were quarantined before they were fetched. Written by
-- storage/media/quarantine.py.
CREATE TABLE quarantined_remote_media (
    -- The server.
    origin TEXT NOT NULL,
    -- The media ID.
    media_id TEXT NOT NULL,
    -- The administrator.
    by_user_id TEXT NOT NULL,
    PRIMARY KEY (origin, media_id)
);

-- Verdicts of virus scanners, and the queue of contents to scan. Written by storage/media/scans.py,
-- storage/media/rescans.py.
CREATE TABLE media_scans (
    -- SHA-256 of the content; for the inside of an encrypted file, a hash of that with its key.
    digest BYTES NOT NULL PRIMARY KEY,
    -- SHA-256 of the content as stored.
    hash BYTES NOT NULL,
    -- 0 unknown, 1 clean, 2 harmful, 3 harmful, but released by an administrator.
    state INTEGER NOT NULL,
    -- Scanners and signature versions of the verdict.
    version TEXT NOT NULL,
    -- Time of the verdict.
    scanned_ts BIGINT NOT NULL,
    -- Scanner and finding. NULL: nothing was found.
    finding TEXT,
    -- User who presented the key of an encrypted file that is harmful. NULL: otherwise.
    by_user_id TEXT,
    -- Queue: 0 not queued, 1 scan again, 2 scan for the first time.
    request INTEGER NOT NULL,
    -- Time before which it is not taken from the queue: a node scans it, or an attempt failed.
    due_ts BIGINT NOT NULL,
    -- Number of consecutive failed attempts.
    failures INTEGER NOT NULL DEFAULT 0
);
-- Clean verdicts on the inside of encrypted files, oldest first: they are deleted after some time.
CREATE INDEX media_scans_encrypted ON media_scans (scanned_ts) WHERE state = 1 AND digest <> hash;
CREATE INDEX media_scans_by_hash ON media_scans (hash);
CREATE INDEX media_scans_harmful ON media_scans (scanned_ts) WHERE state >= 2;
CREATE INDEX media_scans_requested ON media_scans (request, due_ts) WHERE request > 0;

-- Cached URL previews. Written by storage/media/url_previews.py.
CREATE TABLE url_previews (
    -- The URL without fragment.
    url TEXT NOT NULL PRIMARY KEY,
    -- The preview: JSON. NULL: the page could not be fetched.
    body TEXT,
    -- The image, in `media`. NULL: none.
    media_id TEXT,
    -- Time until which the preview is used.
    expires_ts BIGINT NOT NULL
);
CREATE INDEX url_previews_by_expiry ON url_previews (expires_ts);
CREATE INDEX url_previews_by_media ON url_previews (media_id) WHERE media_id IS NOT NULL;

-- Images of URL previews, including those of replaced previews, which are deleted later. Written by
-- storage/media/url_previews.py.
CREATE TABLE url_preview_images (
    -- The image.
    media_id TEXT NOT NULL PRIMARY KEY,
    -- Time of creation.
    created_ts BIGINT NOT NULL
);
CREATE INDEX url_preview_images_by_time ON url_preview_images (created_ts);


----------------------------------------------------------------------------------------------------
-- Search and directories
----------------------------------------------------------------------------------------------------

-- Full-text search: texts of events. The index of the words is in a file for each database, since
-- each has its own kind. Written by storage/search/search.py.
CREATE TABLE searchable_events (
    -- The event with which the text is shown.
    event_nid ROWID NOT NULL PRIMARY KEY,
    -- The event that has the text: the same, or its latest edit.
    text_nid BIGINT NOT NULL,
    -- The room.
    room_nid BIGINT NOT NULL,
    -- `events.position`. NULL: the event was backfilled.
    position BIGINT,
    -- Timestamp of the event.
    ts BIGINT NOT NULL,
    -- 0 message, 1 room name, 2 room topic.
    kind INTEGER NOT NULL,
    -- Sender of the event.
    sender TEXT NOT NULL,
    -- The words in the form in which they are compared, each with a space before and after
    -- (storage/engine/text_index.py).
    words TEXT NOT NULL
);
-- Texts that come from an edit.
CREATE INDEX searchable_events_edited ON searchable_events (text_nid) WHERE text_nid <> event_nid;

-- Events that the search index still has to read: they were outliers when it reached their number,
-- and got their place in the room later. Written by storage/search/search.py.
CREATE TABLE search_queue (
    -- The event.
    event_nid ROWID NOT NULL PRIMARY KEY
);

-- The user directory. Written by storage/directory/user_directory.py.
CREATE TABLE user_directory (
    -- The user, local or remote.
    user_id TEXT NOT NULL PRIMARY KEY,
    -- 1: a local user.
    is_local INTEGER NOT NULL,
    -- Display name. NULL: none.
    display_name TEXT,
    -- Avatar. NULL: none.
    avatar_url TEXT,
    -- Words of the display name in the form in which they are compared, each with a space before
    -- and after.
    name_words TEXT NOT NULL
);

-- Words by which users are found: of display name and user ID, and the user ID itself. Written by
-- storage/directory/user_directory.py.
CREATE TABLE user_directory_words (
    -- The word.
    word TEXT NOT NULL,
    -- The user.
    user_id TEXT NOT NULL,
    PRIMARY KEY (word, user_id)
) CLUSTERED;
CREATE INDEX user_directory_words_by_user ON user_directory_words (user_id);

-- Users whose directory entry is out of date. Written by storage/directory/user_directory.py,
-- storage/directory/user_directory_queue.py.
CREATE TABLE user_directory_queue (
    -- The user.
    user_id TEXT NOT NULL PRIMARY KEY,
    -- Stream position of the latest change; 0: all users are indexed again.
    position BIGINT NOT NULL
);


----------------------------------------------------------------------------------------------------
-- Retention
----------------------------------------------------------------------------------------------------

-- m.room.retention of rooms that have or had it. Written by storage/retention/room_retention.py.
CREATE TABLE room_retention (
    -- The room.
    room_nid ROWID NOT NULL PRIMARY KEY,
    -- Milliseconds; 2^53: the room wants no limit. NULL: the room has no valid setting.
    max_lifetime BIGINT,
    -- Stream position of the change.
    position BIGINT NOT NULL
);
CREATE INDEX room_retention_by_position ON room_retention (position);

-- Purges of room history. Written by storage/retention/history_purges.py.
CREATE TABLE history_purges (
    -- Public identifier.
    purge_id TEXT NOT NULL PRIMARY KEY,
    -- The room.
    room_nid BIGINT NOT NULL,
    -- `purge` or `forgotten`.
    cause TEXT NOT NULL,
    -- Messages before this time are purged. NULL: at any time.
    before_ts BIGINT,
    -- Messages at a smaller depth are purged. NULL: at any depth.
    before_depth BIGINT,
    -- 1: also messages of local users.
    include_local INTEGER NOT NULL,
    -- The newest message at the start, which is not purged. NULL: none is.
    kept_nid BIGINT,
    -- The newest event at the start. Later events are not purged.
    upto_nid BIGINT NOT NULL DEFAULT 0,
    -- Progress: timestamp of the last message that was checked.
    after_ts BIGINT NOT NULL,
    -- Progress: that message.
    after_nid BIGINT NOT NULL,
    -- Number of purged messages.
    messages BIGINT NOT NULL,
    -- Administrator who asked for it. NULL: a rule.
    by_user_id TEXT,
    -- Time of the request.
    created_ts BIGINT NOT NULL,
    -- Time of the end. NULL: it is running.
    finished_ts BIGINT,
    -- Error that ended it. NULL: none.
    error TEXT
);
CREATE UNIQUE INDEX history_purges_active ON history_purges (room_nid) WHERE finished_ts IS NULL;
CREATE INDEX history_purges_by_finished ON history_purges (finished_ts)
    WHERE finished_ts IS NOT NULL;

-- Number of purged messages. Written by storage/retention/purging.py.
CREATE TABLE purge_counts (
    -- The room.
    room_nid BIGINT NOT NULL,
    -- Day of the purge: days since 1970, UTC.
    day BIGINT NOT NULL,
    -- `retention`, `purge` or `forgotten`.
    cause TEXT NOT NULL,
    -- Number of messages.
    messages BIGINT NOT NULL,
    -- Stream position of the latest purge, by which other nodes notice it.
    position BIGINT NOT NULL,
    -- Position of the last purged message that may have been counted as unread; 0: none.
    counted_upto BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (room_nid, day, cause)
) CLUSTERED;
CREATE INDEX purge_counts_by_day ON purge_counts (day, room_nid, cause);
CREATE INDEX purge_counts_by_position ON purge_counts (position);

-- Rooms that no local user is in; all who were have forgotten them. Written by
-- storage/retention/history_purges.py.
CREATE TABLE forgotten_rooms (
    -- The room.
    room_nid ROWID NOT NULL PRIMARY KEY,
    -- Time since which this is known.
    since_ts BIGINT NOT NULL,
    -- Time at which its messages were purged. NULL: not yet.
    purged_ts BIGINT
);
CREATE INDEX forgotten_rooms_to_purge ON forgotten_rooms (since_ts) WHERE purged_ts IS NULL;
