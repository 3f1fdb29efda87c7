//! Pictures in, batches out. Knows no device.
