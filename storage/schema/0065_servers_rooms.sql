-- The rooms of a server, for administrators
CREATE INDEX room_servers_by_server ON room_servers (server);
CREATE INDEX partial_servers_by_server ON partial_servers (server);
