-- When the copy that is worked on was accepted: retries and replays have times of their own. None where an older version has
-- accepted it; then it is when the request came first.
ALTER TABLE requests ADD COLUMN accepted_at bigint;
