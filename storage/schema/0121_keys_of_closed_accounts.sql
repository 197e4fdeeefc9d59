-- Accounts that were closed before they took these along: whom they knew is nobody's business any more. Nobody is told, as nobody is in a
-- room with them
DELETE FROM cross_signing_keys WHERE user_id IN (SELECT user_id FROM accounts WHERE deactivated_ts IS NOT NULL);
DELETE FROM key_signatures WHERE signer_user_id IN (SELECT user_id FROM accounts WHERE deactivated_ts IS NOT NULL);
DELETE FROM user_signature_positions WHERE signer_user_id IN (SELECT user_id FROM accounts WHERE deactivated_ts IS NOT NULL);
