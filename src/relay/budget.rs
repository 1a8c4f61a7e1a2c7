//! One budget for all queues of a process. It counts what waits for sockets, what is half written, what is
//! half read, and what waits for the backplane. Workers share it.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A worker reports a change when it is as large as this, so that workers do not fight for one cache line.
const GRAIN: isize = 64 * 1024;
/// What may wait for the backplane on one worker, whatever the budget is.
const BACKPLANE_LEAST: usize = 1024 * 1024;
const BACKPLANE_MOST: usize = 64 * 1024 * 1024;
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

    /// The bytes that may wait for the backplane on one of so many workers. Together that is a quarter of the
    /// budget. So a backplane that stands still leaves room for the connections that are open. A worker always has
    /// room for a few messages.
    #[must_use]
    pub fn backplane_bytes(&self, workers: usize) -> usize {
        (self.0.limit / 4 / workers.max(1)).clamp(BACKPLANE_LEAST, BACKPLANE_MOST)
    }

    /// One worker's part of it.
    #[must_use]
    pub fn share(&self) -> Rc<Share> {
        Rc::new(Share { budget: self.clone(), held: Cell::new(0), unreported: Cell::new(0) })
    }
}

/// What the connections of one worker hold, or its queues to the backplane.
#[derive(Debug)]
pub struct Share {
    budget: Budget,
    held: Cell<usize>,
    unreported: Cell<isize>,
}

impl Share {
    /// All that it holds, in bytes.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.get()
    }

    /// A connection or a queue holds `now` bytes, and held `before` until then.
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
    fn the_backplanes_part_is_a_quarter_for_all_workers() {
        let of = |bytes, workers| Budget::new(bytes).backplane_bytes(workers);
        assert_eq!(of(256 * KIB * KIB, 4), 16 * KIB * KIB);
        assert_eq!(of(256 * KIB * KIB, 1), BACKPLANE_MOST);
        assert_eq!(of(usize::MAX, 1), BACKPLANE_MOST);
        assert_eq!(of(0, 4), BACKPLANE_LEAST);
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
