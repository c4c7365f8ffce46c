//! What the program `arm` answers.

/// The timer runs, with the sweep of this load.
pub const DONE: i32 = 0;
/// There is no map value to hold the timer.
pub const NO_SWEEPER: i32 = 1;
/// The kernel does not take the sweep.
pub const NO_CALLBACK: i32 = 2;
/// The kernel does not start the timer.
pub const NOT_STARTED: i32 = 3;
/// The kernel had no memory for the timer at once, and a program cannot wait: try again.
pub const NO_MEMORY: i32 = 4;
