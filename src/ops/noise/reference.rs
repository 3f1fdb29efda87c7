//! The naive float64 truth of this operation, for tests.
