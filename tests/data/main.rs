//! Pictures in, batches out: tests of `ddim_engine::data` through its public face.

mod batches;
mod caching;
mod parquet;
mod pictures;
mod procedural;
mod shared;
mod sources;
mod support;
