//! Sign-in: who is this, by which token, until when.

pub mod settings;
