-- What operators did to dead letters. Whoever discards or edits one can get it back from here, for as long as requests are kept.
CREATE TABLE letter_deeds (
    id       INTEGER PRIMARY KEY,
    -- Names the letter: see policy/letters.rs.
    letter   TEXT    NOT NULL,
    -- Its request's id, if it has one. The request itself may be unknown, or forgotten earlier.
    request  TEXT,
    deed     TEXT    NOT NULL CHECK (deed IN ('sent_back', 'edited', 'discarded')),
    cause    TEXT    NOT NULL,
    at       INTEGER NOT NULL,
    operator TEXT    NOT NULL,
    reason   TEXT    NOT NULL,
    -- The whole letter as `dead export` writes it, where it left the queue otherwise than as it was.
    message  TEXT,
    CHECK (message IS NOT NULL OR deed = 'sent_back')
) STRICT;
CREATE INDEX letter_deeds_by_letter ON letter_deeds (letter);
CREATE INDEX letter_deeds_by_time ON letter_deeds (at);
