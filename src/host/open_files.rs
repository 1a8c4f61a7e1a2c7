//! How many files, and so sockets, this process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Beside the clients' sockets: listeners, Redis, keys, requests that are no WebSocket (yet).
pub const OTHER_FILES: u64 = 1000;

/// Raises the soft limit to the hard one (setrlimit(2)), and returns the limit, `None` where there is none.
/// The soft limit is kept low for select(2), and nothing here uses that.
#[must_use]
pub fn raise_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    // Where it cannot be raised, the old one stands.
    if setrlimit(Resource::Nofile, raised).is_ok() { raised.current } else { limit.current }
}
