//! Starts that are calculated from text. Those that follow from a seed are in
//! [`map::Start`](crate::map::Start).

pub mod calibrated;
