-- What may be pruned, oldest first: found without a look at what may not, whatever the journal's size.
CREATE INDEX requests_ended ON requests (settled_at) WHERE state IN ('final', 'dead');
