//! Waiting until an instant, to some tens of microseconds. tokio's timers have a grain of a millisecond,
//! which would be most of the latency that is measured.

use std::io;
use std::time::Duration;

use tokio::time::Instant;

use super::result::count;

/// Wakes one task at one instant at a time.
#[derive(Debug)]
pub(super) struct Alarm {
    #[cfg(target_os = "linux")]
    timer: tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>,
}

#[cfg(target_os = "linux")]
impl Alarm {
    /// An alarm on this thread's runtime.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn new() -> io::Result<Self> {
        use rustix::time::{TimerfdClockId, TimerfdFlags, timerfd_create};
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe; an OwnedFd of ours stays open as long as the AsyncFd around it"
        )]
        let timer = tokio::io::unix::AsyncFd::with_interest(timer, tokio::io::Interest::READABLE)?;
        Ok(Self { timer })
    }

    /// Waits until `due`; not at all when that is past.
    ///
    /// # Errors
    /// What the system says.
    pub(super) async fn until(&mut self, due: Instant) -> io::Result<()> {
        use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};
        let wait = due.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            return Ok(());
        }
        let once = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec::try_from(wait).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 }),
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        let interest = tokio::io::Interest::READABLE;
        self.timer.async_io(interest, |timer| Ok(rustix::io::read(timer, &mut [0; 8])?)).await?;
        Ok(())
    }
}

#[cfg(not(target_os = "linux"))]
impl Alarm {
    /// An alarm on this thread's runtime.
    ///
    /// # Errors
    /// None here.
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {})
    }

    /// Waits until `due`; not at all when that is past.
    ///
    /// # Errors
    /// None here.
    pub(super) async fn until(&mut self, due: Instant) -> io::Result<()> {
        tokio::time::sleep_until(due).await;
        Ok(())
    }
}

/// Instants that are evenly apart, without drift.
#[derive(Debug, Clone, Copy)]
pub(super) struct Beat {
    start: Instant,
    per_second: f64,
    count: u64,
}

impl Beat {
    /// One at `start`, then `per_second` of them a second.
    pub(super) fn new(start: Instant, per_second: f64) -> Self {
        Self { start, per_second, count: 0 }
    }

    /// When the next turn is due, also if that has passed.
    pub(super) fn next(&mut self) -> Instant {
        let due = self.start + Duration::from_secs_f64(count(self.count) / self.per_second);
        self.count += 1;
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_alarm_is_never_early_and_past_instants_are_not_waited_for() {
        let mut alarm = Alarm::new().unwrap();
        let start = Instant::now();
        for us in [0, 200, 500, 1500] {
            let due = start + Duration::from_micros(us);
            alarm.until(due).await.unwrap();
            assert!(Instant::now() >= due);
        }
        alarm.until(start).await.unwrap();
    }

    #[test]
    fn a_beat_does_not_drift() {
        let start = Instant::now();
        let mut beat = Beat::new(start, 30.0);
        let last = (0..=30_000).map(|_| beat.next()).last().unwrap();
        let seconds = (last - start).as_secs_f64();
        assert!((seconds - 1000.0).abs() < 0.001, "{seconds}");
    }
}
