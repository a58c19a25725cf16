-- Where a request stands in its producer's trace (W3C Trace Context), for its events. None where the message had no valid one.
ALTER TABLE requests ADD COLUMN traceparent TEXT;
ALTER TABLE requests ADD COLUMN tracestate TEXT CHECK (tracestate IS NULL OR traceparent IS NOT NULL);
