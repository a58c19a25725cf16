-- The outbox's numbers are never given twice. A publisher that was held up deletes the events that it sent by their numbers:
-- what came under a number again would go with them, unsent. And final blocks that went away are told of.

CREATE TABLE outbox_2 (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    account        INTEGER NOT NULL REFERENCES accounts (id),
    event_id       TEXT    NOT NULL,
    kind           TEXT    NOT NULL CHECK (kind = 'final' OR kind = 'retry' OR kind = 'dead' OR kind = 'reorged'),
    body           TEXT    NOT NULL,
    reply_to       TEXT,
    correlation_id TEXT
) STRICT;
INSERT INTO outbox_2 SELECT id, account, event_id, kind, body, reply_to, correlation_id FROM outbox ORDER BY id;
DROP TABLE outbox;
ALTER TABLE outbox_2 RENAME TO outbox;
