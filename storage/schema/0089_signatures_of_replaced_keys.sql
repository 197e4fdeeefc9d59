-- Signatures by keys of cross-signing that were replaced: nobody can check them any more
DELETE FROM key_signatures WHERE NOT EXISTS (
    SELECT 1 FROM cross_signing_keys AS c
    WHERE c.user_id = key_signatures.signer_user_id AND 'ed25519:' || c.public_key = key_signatures.signer_key_id
) AND NOT EXISTS (
    SELECT 1 FROM devices AS d
    WHERE d.user_id = key_signatures.signer_user_id AND 'ed25519:' || d.device_id = key_signatures.signer_key_id
);
