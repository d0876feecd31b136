//! The files that outputs are written to, with the rights of the invoking user.
//!
//! * [`output`]: the targets of the bytes. Every target is opened before the run, and is written completely or not at all.
//! * [`place`]: folders and files by descriptors, and files without a name.
//! * [`tables`]: the folder of the tables of `--parquet`.

pub mod output;
pub mod place;
#[cfg(feature = "parquet")]
pub mod tables;
