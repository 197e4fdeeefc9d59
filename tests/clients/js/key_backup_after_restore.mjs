// Checks key backups after the server's database was restored from a backup, with matrix-js-sdk and
// its Rust crypto: clients continue to use their key backups, and can upload lost room keys again.
//
// usage: node key_backup_after_restore.mjs SERVER_URL PREFIX
//
// PREFIX begins the names of the accounts. For the output and the actions on the server, see
// crypto_clients.mjs. Exits with 0 on success.
import assert from "node:assert/strict";
import { waitForMemberCount } from "./sdk.mjs";
import {
    backUpDatabase, bootstrapCrypto, ENCRYPTION_STATE, expectTimelineReadable, finish, joinRoom,
    login, register, restoreDatabase, sendMessage, step, stopClient, verifyWithRecoveryKey,
    waitForBackup,
} from "./crypto_clients.mjs";

const [url, prefix] = process.argv.slice(2);
const MORE_THAN_INITIAL_SYNC = 25; // more events than the initial sync of a device contains

const [alice, bob] = await Promise.all(
    ["alice", "bob"].map((name) => register(url, `${prefix}-${name}`)));
const recoveryKey = await bootstrapCrypto(alice);
const exportRoomKeys = (client) => client.getCrypto().exportRoomKeys();

// Logs in a further device of Alice, which loads the backup key from secret storage.
async function loginAlice() {
    const client = await login(url, `${prefix}-alice`, recoveryKey.privateKey);
    await verifyWithRecoveryKey(client);
    await client.getCrypto().loadSessionBackupPrivateKeyFromSecretStorage();
    return client;
}

step("log in a second device, which does not read the old messages of a room yet");
const { room_id: roomId } = await alice.createRoom({
    preset: "private_chat", invite: [bob.getUserId()], initial_state: [ENCRYPTION_STATE],
});
await joinRoom(bob, roomId);
await waitForMemberCount(alice, roomId, 2);
await sendMessage(alice, roomId, "in the database backup", [bob]);
await waitForBackup(alice);
for (let index = 0; index < MORE_THAN_INITIAL_SYNC; index++) {
    await alice.setRoomTopic(roomId, `${index}`);
}
const alice2 = await loginAlice();
assert.deepEqual(await exportRoomKeys(alice2), []);

step("back up the database, upload further room keys, and restore the database");
await backUpDatabase();
await alice.getCrypto().forceDiscardSession(roomId);
const lostSession = await sendMessage(alice, roomId, "lost", [bob, alice2]);
await waitForBackup(alice);
await restoreDatabase();

step("continue to send and to read messages");
const oldSessionBody = "in the session from before the restore";
const newSessionBody = "in a new session";
assert.equal(await sendMessage(alice, roomId, oldSessionBody, [bob, alice2]), lostSession);
await alice.getCrypto().forceDiscardSession(roomId);
await sendMessage(alice, roomId, newSessionBody, [bob, alice2]);
await expectTimelineReadable(alice2, roomId, ["in the database backup"]);
assert.equal((await exportRoomKeys(alice2)).length, 3);

step("import the keys of the first device on a third one, which uploads the lost keys");
const exportedKeys = await exportRoomKeys(alice);
for (const client of [alice, alice2, bob]) stopClient(client);
const alice3 = await loginAlice();
await alice3.getCrypto().importRoomKeys(exportedKeys);
await waitForBackup(alice3);
stopClient(alice3);

step("log in a fourth device while the others are stopped: it has the keys of the backup");
const alice4 = await loginAlice();
await expectTimelineReadable(
    alice4, roomId, ["in the database backup", oldSessionBody, newSessionBody]);

finish();
