//! The egress daemon as a library.
