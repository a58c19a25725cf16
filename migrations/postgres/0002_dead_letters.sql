-- What operators did to dead letters. Whoever discards or edits one can get it back from here, for as long as requests are kept.
CREATE TABLE letter_deeds (
    id       bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- Names the letter: see policy/letters.rs.
    letter   text   NOT NULL,
    -- Its request's id, if it has one. The request itself may be unknown, or forgotten earlier.
    request  text,
    deed     text   NOT NULL CHECK (deed IN ('sent_back', 'edited', 'discarded')),
    cause    text   NOT NULL,
    at       bigint NOT NULL,
    operator text   NOT NULL,
    reason   text   NOT NULL,
    -- The whole letter as `dead export` writes it, where it left the queue otherwise than as it was.
    message  text,
    CHECK (message IS NOT NULL OR deed = 'sent_back')
);
CREATE INDEX letter_deeds_by_letter ON letter_deeds (letter, id);
CREATE INDEX letter_deeds_by_time ON letter_deeds (at);
