-- What the chain or an operator may still do to what was decided: deep reorganisations, gaps, cancellations.

-- Since when the block that it was final in is no part of the chain any more; nothing again once it is final anew.
ALTER TABLE transactions ADD COLUMN reorged_at INTEGER CHECK (reorged_at IS NULL OR block_hash IS NOT NULL);
CREATE INDEX transactions_reorged ON transactions (account, nonce) WHERE reorged_at IS NOT NULL;

-- Self-transfers at nonces that hold up all later ones, since nothing of ours may take them. Each attempt is a row.
CREATE TABLE fillers (
    id        INTEGER PRIMARY KEY,
    account   INTEGER NOT NULL REFERENCES accounts (id),
    nonce     INTEGER NOT NULL CHECK (nonce >= 0),
    hash      BLOB    NOT NULL CHECK (length(hash) = 32),
    raw       BLOB    NOT NULL CHECK (length(raw) > 0),
    max_fee   INTEGER NOT NULL CHECK (max_fee >= 0),
    tip       INTEGER CHECK (tip >= 0),
    signed_at INTEGER NOT NULL
) STRICT;
CREATE INDEX fillers_by_nonce ON fillers (account, nonce);

-- An operator's wish that a request ends without being written. Gone once the request is final or dead.
CREATE TABLE cancellations (
    request   INTEGER PRIMARY KEY REFERENCES requests (seq),
    wished_at INTEGER NOT NULL,
    wished_by TEXT    NOT NULL,
    reason    TEXT    NOT NULL
) STRICT;
