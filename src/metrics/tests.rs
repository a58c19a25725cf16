//! What the documents say about metrics is what the program has.
