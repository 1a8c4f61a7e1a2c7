//! The proof of the room: exhaustive search of small worlds ([`scenarios`]) and seeded histories of large
//! ones ([`simulation`]).
//!
//! # The model
//! [`world`] runs the relay's own `Room` (one per instance) and `Record` (Redis) unchanged. It models what is
//! between them as the promises of `src/backplane/mod.rs` leave it open.
//!
//! - Calls (claim, renew, release) reach Redis at any time. Renewals come in any order. Claims and releases
//!   of one instance come in the order in which they were made. Publishes come in the order of their channel,
//!   before or after calls that were made later.
//! - What Redis publishes reaches each subscriber late and in one order for both channels (they come through
//!   one connection). Or it is lost for one subscriber and arrives at others.
//! - Answers arrive at any time and in any order, however late. That of a claim comes after the claim's own
//!   message, unless that was lost (and in one scenario even before it).
//! - Connections leave at any moment, also while they claim. Instances crash, believe others to be gone, or
//!   stop for longer than a lease and go on. Redis loses everything. Markers are given up too early.
//!
//! Each kind of trouble is bounded per scenario ([`world::Setup`]); within its bounds the search is complete.
//! [`checker`] holds the invariants. It takes "after things settle" literally: it takes every state in which
//! nothing is on its way. It runs the world on from there without trouble (everybody renews, leases of the
//! dead end). Then exactly the newest must be open, registered, recorded, known to each other, and reach each
//! other.
//!
//! Not modelled:
//! - time (an order of events is all that there is, except lease ends),
//! - the eviction limit,
//! - hand-overs (they change a word in a message),
//! - a Redis clock that jumps back in a failover,
//! - everything outside `Room` and `Record`: the Lua scripts (one suite holds them to `Record`), the hub,
//!   outboxes, sockets.
//!
//! The hub and the outboxes are in the simulation; there the eviction limit and hand-overs are, too.
//!
//! Mutations ([`world::Mutation`]) build a mistake into the world, and the search has to find it.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod checker;
mod fleet;
mod links;
mod network;
mod pacing_vectors;
mod scenarios;
mod simulation;
mod world;
