//! The learning-rate finder.
