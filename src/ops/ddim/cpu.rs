//! CPU kernels of this operation.
