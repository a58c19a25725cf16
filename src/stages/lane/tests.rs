//! Steps of a term over fakes.
