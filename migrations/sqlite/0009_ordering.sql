-- Strict ordering: of one ordering key, a request waits until all before it are final or dead.

-- SHA-256 of its ordering key; none where requests are not ordered so.
ALTER TABLE requests ADD COLUMN order_key BLOB CHECK (length(order_key) = 32);
-- Its place among those of its key: the one in the queue that it was given when it was admitted, or replayed last. Until all
-- before it have ended its turn is 0, which is no place in the queue; then it is this.
ALTER TABLE requests ADD COLUMN order_place INTEGER CHECK ((order_place IS NULL) = (order_key IS NULL));
-- Who is next of a key: found without a look at those behind it.
CREATE INDEX requests_ordered ON requests (order_key, order_place)
    WHERE order_key IS NOT NULL AND state <> 'final' AND state <> 'dead';

-- Older programs would sign what has to wait, and count nothing.
UPDATE counters SET value = 9 WHERE name = 'oldest_schema';
