-- Where in the sequence the present stay in the room began, of this server's users who are in it: changes of their name are no new joining.
-- And where the last one ended, of those whose membership has changed more than twenty times since: it was not looked for so far back.
-- (Escapes are taken out of the JSON first: it may have some of characters that PostgreSQL cannot have in text, as U+0000. No word that
-- is looked for has any.)
ALTER TABLE memberships ADD COLUMN joined_position BIGINT;
WITH RECURSIVE walk (room_nid, user_id, nid, began, hops) AS (
    SELECT m.room_nid, m.user_id, m.event_nid, COALESCE(e.position, m.position), 0
        FROM memberships AS m JOIN events AS e ON e.event_nid = m.event_nid
        WHERE m.is_local = 1 AND m.membership = 'join'
    UNION ALL
    SELECT w.room_nid, w.user_id, e.event_nid, COALESCE(e.position, w.began), w.hops + 1
        FROM walk AS w JOIN events AS l ON l.event_nid = w.nid JOIN events AS e ON e.event_nid = l.replaces
        WHERE w.hops < 100000
            AND (regexp_replace(convert_from(e.pdu, 'UTF8'), '\\.', '_', 'g')::json #>> '{content,membership}') = 'join'
)
UPDATE memberships SET joined_position = found.began
    FROM (SELECT room_nid, user_id, MIN(began) AS began FROM walk GROUP BY room_nid, user_id) AS found
    WHERE memberships.room_nid = found.room_nid AND memberships.user_id = found.user_id;
WITH RECURSIVE walk (room_nid, user_id, nid, ended, membership, hops) AS (
    SELECT m.room_nid, m.user_id, m.event_nid, m.position,
            (regexp_replace(convert_from(e.pdu, 'UTF8'), '\\.', '_', 'g')::json #>> '{content,membership}'), 0
        FROM memberships AS m JOIN events AS e ON e.event_nid = m.event_nid
        WHERE m.is_local = 1 AND m.membership <> 'join' AND m.left_position IS NULL
    UNION ALL
    SELECT w.room_nid, w.user_id, l.replaces, COALESCE(l.position, 0),
            (regexp_replace(convert_from(e.pdu, 'UTF8'), '\\.', '_', 'g')::json #>> '{content,membership}'), w.hops + 1
        FROM walk AS w JOIN events AS l ON l.event_nid = w.nid JOIN events AS e ON e.event_nid = l.replaces
        WHERE w.membership <> 'join' AND w.hops < 100000
)
UPDATE memberships SET left_position = found.ended
    FROM (SELECT room_nid, user_id, ended FROM walk WHERE membership = 'join') AS found
    WHERE memberships.room_nid = found.room_nid AND memberships.user_id = found.user_id;
