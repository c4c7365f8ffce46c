//! Shared types and pure logic.
#![cfg_attr(not(test), no_std)]
