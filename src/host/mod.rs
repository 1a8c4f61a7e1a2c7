//! The machine: what it is, and what it allows this process (memory of its control group, open files).

pub mod cgroup;
mod machine;
pub mod open_files;

pub use self::machine::Machine;
