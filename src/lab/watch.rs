//! The page of a run, live.
