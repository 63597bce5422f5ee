//! Segments: what is written, what is read back, what survives.

mod another;
mod crashes;
mod damage;
mod reads;
mod retention;
mod space;
mod support;
mod writing;
