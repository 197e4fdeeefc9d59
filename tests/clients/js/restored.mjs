// A server whose database is restored from a backup: clients go on with their backups of room keys, and what was lost of those can be
// put there again.
//
// usage: node restored.mjs SERVER_URL PREFIX
//
// PREFIX begins the names of the accounts. What it prints, and what it asks for: people.mjs. Ends with 0 when all went well.
import assert from "node:assert/strict";
import { until } from "./sdk.mjs";
import {
    account, allBackedUp, backUpServer, bootstrap, device, ENCRYPTION, end, enter, lay, readsAll, recover, restoreServer, say, step,
} from "./people.mjs";

const [url, prefix] = process.argv.slice(2);
const OLDER_THAN_SHOWN = 25; // more events than a new device is told of at first

const [alice, bob] = await Promise.all(["alice", "bob"].map((name) => account(url, `${prefix}-${name}`)));
const key = await bootstrap(alice);
const keysOf = (client) => client.getCrypto().exportRoomKeys();

// A further device of Alice's, with what is in her secret storage.
async function another() {
    const client = await device(url, `${prefix}-alice`, key.privateKey);
    await recover(client);
    await client.getCrypto().loadSessionBackupPrivateKeyFromSecretStorage();
    return client;
}

step("a room, and a device that has not looked back in it");
const { room_id: roomId } = await alice.createRoom({
    preset: "private_chat", invite: [bob.getUserId()], initial_state: [ENCRYPTION],
});
await enter(bob, roomId);
await until(alice, "Bob in the room", () => alice.getRoom(roomId)?.getJoinedMemberCount() === 2);
await say(alice, roomId, "kept", [bob]);
await allBackedUp(alice);
for (let number = 0; number < OLDER_THAN_SHOWN; number++) await alice.setRoomTopic(roomId, `${number}`);
const alice2 = await another();
assert.deepEqual(await keysOf(alice2), []);

step("the database is backed up, and restored when clients have put further keys into the backup of room keys");
await backUpServer();
await alice.getCrypto().forceDiscardSession(roomId);
const lost = await say(alice, roomId, "lost", [bob, alice2]);
await allBackedUp(alice);
await restoreServer();

step("they go on");
assert.equal(await say(alice, roomId, "with the session of before", [bob, alice2]), lost);
await alice.getCrypto().forceDiscardSession(roomId);
await say(alice, roomId, "with a new one", [bob, alice2]);
await readsAll(alice2, roomId, ["kept"]);
assert.equal((await keysOf(alice2)).length, 3);

step("keys of the first device are imported on a later one, which puts into the backup what is not there");
const exported = await keysOf(alice);
for (const client of [alice, alice2, bob]) lay(client);
const alice3 = await another();
await alice3.getCrypto().importRoomKeys(exported);
await allBackedUp(alice3);
lay(alice3);

step("one that comes when all others are off has them from the backup alone");
const alice4 = await another();
await readsAll(alice4, roomId, ["kept", "with the session of before", "with a new one"]);

end();
