//! Past the budget of the process (`relay/budget.rs`) each worker makes room among its own connections.

use std::cmp::Reverse;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::{Hub, Seat};
use crate::metrics::Dropped;
use crate::relay::outbox::Outbox;

/// After a look at all connections that found nothing to free.
const PAUSE: Duration = Duration::from_millis(100);

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
        let mut freed = self.drop_departing(excess);
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

    /// This connection has lost its room, and what waits for it is still written for a moment.
    pub(super) fn note_departing(&self, seat: &Rc<Seat>) {
        if seat.held_bytes() > 0 {
            self.departing.borrow_mut().push(Rc::downgrade(seat));
        }
    }

    /// Lets those go whose socket has ended: until then their memory stays.
    pub(super) fn forget_departed(&self) {
        self.departing.borrow_mut().retain(|seat| seat.strong_count() > 0);
    }

    /// Drops what waits for connections that have lost their room, before anybody suffers who is still here. How many
    /// bytes that frees.
    fn drop_departing(&self, excess: usize) -> usize {
        let mut freed = 0;
        while freed < excess {
            let Some(seat) = self.departing.borrow_mut().pop() else { break };
            let Some(seat) = seat.upgrade() else { continue };
            let before = seat.held_bytes();
            seat.with_outbox(Outbox::forget_waiting);
            freed += before.saturating_sub(seat.held_bytes());
        }
        freed
    }

    fn fullest_first(&self) -> Vec<Rc<Seat>> {
        let mut seats = self.seats();
        seats.retain(|seat| seat.held_bytes() > 0);
        seats.sort_by_key(|seat| Reverse(seat.held_bytes()));
        seats
    }
}
