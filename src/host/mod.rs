//! What the machine allows this process: memory of its control group, and open files.

pub mod cgroup;
pub mod open_files;
