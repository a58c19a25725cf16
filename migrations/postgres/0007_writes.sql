-- What a request asks for, fixed when it is taken in. None where a version without routes has taken it in.

ALTER TABLE requests ADD COLUMN write_to bytea CHECK (length(write_to) = 20);
ALTER TABLE requests ADD COLUMN write_value text CHECK ((write_value IS NULL) = (write_to IS NULL));
-- How much gas: this much, or so many percent above the estimate.
ALTER TABLE requests ADD COLUMN write_gas bigint CHECK (write_gas > 0);
ALTER TABLE requests ADD COLUMN write_margin bigint CHECK (
    (write_margin IS NULL OR write_margin >= 0)
    AND (write_gas IS NULL OR write_margin IS NULL)
    AND (write_to IS NULL) = (write_gas IS NULL AND write_margin IS NULL));
-- The calldata where they are not the body. A retry needs them when it comes back; gone once it is final or dead.
ALTER TABLE requests ADD COLUMN write_data bytea CHECK (
    write_data IS NULL OR (write_to IS NOT NULL AND state <> 'final' AND state <> 'dead'));

-- Older programs would write the body to the one address that they know.
UPDATE counters SET value = 7 WHERE name = 'oldest_schema';
