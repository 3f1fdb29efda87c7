//! Sets of pictures by name: the real download code against servers on this machine that misbehave, then unpacking, labels, checks.
//!
//! The official hosts are never asked: the addresses of the catalogue are only read as data.

mod archives;
mod mat;
mod server;
mod torture;
mod whole;
