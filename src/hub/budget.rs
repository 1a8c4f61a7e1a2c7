//! One budget for all queues of a process: what waits for sockets, what is half written, what is half read. Workers
//! share it; past it each worker makes room among its own connections.

use std::cell::Cell;
use std::cmp::Reverse;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::{Hub, Seat};
use crate::metrics::Dropped;
use crate::relay::outbox::Outbox;

/// A worker reports a change when it is as large as this, so that workers do not fight for one cache line.
const GRAIN: isize = 64 * 1024;
/// After a look at all connections that found nothing to free.
const PAUSE: Duration = Duration::from_millis(100);
/// Once over, room is made down to so many eighths.
const DOWN_TO: usize = 7;

/// What all queues of a process may hold together.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Total>);

#[derive(Debug)]
struct Total {
    limit: usize,
    held: AtomicUsize,
}

impl Budget {
    /// A budget of so many bytes.
    #[must_use]
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Total { limit, held: AtomicUsize::new(0) }))
    }

    /// One worker's part of it.
    #[must_use]
    pub fn share(&self) -> Rc<Share> {
        Rc::new(Share { budget: self.clone(), held: Cell::new(0), unreported: Cell::new(0) })
    }
}

/// What the connections of one worker hold.
#[derive(Debug)]
pub struct Share {
    budget: Budget,
    held: Cell<usize>,
    unreported: Cell<isize>,
}

impl Share {
    /// A connection holds `now` bytes, and held `before` until then.
    pub fn changed(&self, before: usize, now: usize) {
        if before == now {
            return;
        }
        self.held.set(self.held.get() + now - before);
        let unreported = self.unreported.get() + now.cast_signed() - before.cast_signed();
        if unreported.abs() < GRAIN {
            self.unreported.set(unreported);
            return;
        }
        self.unreported.set(0);
        // Wraps around like the subtraction that it may be.
        self.budget.0.held.fetch_add(unreported.cast_unsigned(), Ordering::Relaxed);
    }

    /// How many bytes this worker has to free; 0 while the process is within its budget.
    ///
    /// Each worker frees in proportion to what it holds, and no worker knows the others' connections.
    #[must_use]
    pub fn excess(&self) -> usize {
        let Total { limit, ref held } = *self.budget.0;
        // One worker's unreported change may be ahead of the total's.
        let held = held.load(Ordering::Relaxed).cast_signed().max(0).cast_unsigned();
        if held <= limit {
            return 0;
        }
        let excess = held - limit / 8 * DOWN_TO;
        (excess as u128 * self.held.get() as u128 / held as u128) as usize
    }
}

/// Whether room is being made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Relief {
    /// There was enough, or room could be made.
    Needless,
    /// It is being made: what that causes must not begin it anew.
    UnderWay,
    /// There was nothing to free then.
    InVain(Instant),
}

impl Hub {
    /// Makes room while the process is past its budget: the fullest connections first lose the volatile frames that
    /// wait for them, then their place.
    pub fn keep_budget(self: &Rc<Self>) {
        let excess = self.share.excess();
        if excess == 0 {
            return;
        }
        let now = Instant::now();
        let may_begin = match self.relieved.get() {
            Relief::Needless => true,
            Relief::UnderWay => false,
            Relief::InVain(then) => now.saturating_duration_since(then) >= PAUSE,
        };
        if !may_begin {
            return;
        }
        self.relieved.set(Relief::UnderWay);
        let mut freed = 0;
        for seat in self.fullest_first() {
            if freed < excess {
                let before = seat.held_bytes();
                self.metrics.dropped(Dropped::Budget, seat.with_outbox(Outbox::drop_volatile));
                freed += before.saturating_sub(seat.held_bytes());
            }
        }
        for seat in self.fullest_first() {
            if freed < excess {
                let before = seat.held_bytes();
                self.too_slow(&seat);
                freed += before.saturating_sub(seat.held_bytes());
            }
        }
        self.relieved.set(if freed == 0 { Relief::InVain(now) } else { Relief::Needless });
    }

    fn fullest_first(&self) -> Vec<Rc<Seat>> {
        let mut seats = self.seats();
        seats.retain(|seat| seat.held_bytes() > 0);
        seats.sort_by_key(|seat| Reverse(seat.held_bytes()));
        seats
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1024;

    #[test]
    fn within_the_budget_nothing_is_in_excess_and_past_it_each_worker_has_its_part() {
        let budget = Budget::new(8000 * KIB);
        let (a, b) = (budget.share(), budget.share());
        a.changed(0, 6000 * KIB);
        b.changed(0, 2000 * KIB);
        assert_eq!((a.excess(), b.excess()), (0, 0));
        b.changed(2000 * KIB, 2064 * KIB);
        // 64 KiB over, and an eighth of the budget below it: 1064 KiB in all.
        let (of_a, of_b) = (a.excess(), b.excess());
        assert!((1063 * KIB..=1064 * KIB).contains(&(of_a + of_b)) && of_a > 2 * of_b, "{of_a} {of_b}");
        a.changed(6000 * KIB, 5936 * KIB);
        assert_eq!((a.excess(), b.excess()), (0, 0));
    }

    #[test]
    fn small_changes_add_up_and_cancel_out() {
        let budget = Budget::new(KIB);
        let share = budget.share();
        for held in 0..63 {
            share.changed(held * KIB, (held + 1) * KIB);
        }
        assert_eq!(share.excess(), 0, "not reported yet");
        share.changed(63 * KIB, 64 * KIB);
        assert!(share.excess() > 62 * KIB);
        share.changed(64 * KIB, 0);
        assert_eq!(share.excess(), 0);
    }
}
