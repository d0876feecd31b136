//! The escape sequences of the texts for a terminal: no other ones are written.

/// The escape sequence for bold text.
pub const BOLD: &str = "\x1b[1m";
/// The escape sequence for dim text.
pub const DIM: &str = "\x1b[2m";
/// The escape sequence for bold red text.
pub const RED: &str = "\x1b[1;31m";
/// The escape sequence that ends a style.
pub const RESET: &str = "\x1b[0m";

/// All escape sequences.
pub const STYLES: [&str; 4] = [BOLD, DIM, RED, RESET];
