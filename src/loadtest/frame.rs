//! What a measured frame carries, and how its receiver counts.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::settings::LoadOptions;
use crate::relay::ids::Device;

/// The head of a measured frame; zeros follow up to its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame {
    /// Byte 0: the stream id.
    pub(super) stream: u8,
    pub(super) device: Device,
    /// Which run: frames of another one are somebody else's.
    pub(super) run: u32,
    /// The number of the user among those of the run.
    pub(super) user: u32,
    /// Its place among the frames of its sender and stream, from 0.
    pub(super) sequence: u64,
    /// When it was due, in nanoseconds since the run began.
    pub(super) due: u64,
}

impl Frame {
    /// The whole message of `size` bytes.
    pub(super) fn encode(&self, size: usize) -> Bytes {
        let mut bytes = BytesMut::with_capacity(size.max(LoadOptions::SMALLEST_FRAME));
        bytes.put_u8(self.stream);
        bytes.put_u8(self.device.as_str().as_bytes()[0]);
        bytes.put_u32(self.run);
        bytes.put_u32(self.user);
        bytes.put_u64(self.sequence);
        bytes.put_u64(self.due);
        bytes.resize(size.max(LoadOptions::SMALLEST_FRAME), 0);
        bytes.freeze()
    }

    /// The head of a message, if it has one.
    pub(super) fn decode(message: &[u8]) -> Option<Self> {
        let mut head = message;
        Some(Self {
            stream: head.try_get_u8().ok()?,
            device: {
                let letter = head.try_get_u8().ok()?;
                Device::ALL.into_iter().find(|device| device.as_str().as_bytes()[0] == letter)?
            },
            run: head.try_get_u32().ok()?,
            user: head.try_get_u32().ok()?,
            sequence: head.try_get_u64().ok()?,
            due: head.try_get_u64().ok()?,
        })
    }
}

/// What the arrival of a frame says about its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    /// The newest so far; this many measured frames before it have not come.
    Newest { skipped: u64 },
    /// One that was skipped before.
    Late,
    /// It has been here before.
    Duplicate,
}

/// One sender's frames on one stream: what was sent, and what arrived.
///
/// Only frames from the first measured one on count; those of the warm-up keep the order known.
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// The sequence of the next frame.
    next_to_send: u64,
    /// The first measured frame.
    first: Option<u64>,
    /// One past the newest frame that arrived.
    next_to_arrive: u64,
    /// Which of the 64 frames before that arrived; the lowest bit is the newest.
    arrived: u64,
}

impl Flow {
    /// Takes the next sequence number.
    pub(super) fn send(&mut self, measured: bool) -> u64 {
        let sequence = self.next_to_send;
        self.next_to_send += 1;
        if measured {
            self.first.get_or_insert(sequence);
        }
        sequence
    }

    /// True when this frame counts.
    pub(super) fn is_measured(&self, sequence: u64) -> bool {
        self.first.is_some_and(|first| sequence >= first)
    }

    /// Notes an arrival. What is further back than 64 frames counts as late.
    pub(super) fn arrive(&mut self, sequence: u64) -> Arrival {
        let Some(back) = self.next_to_arrive.checked_sub(sequence.saturating_add(1)) else {
            let from = self.next_to_arrive.max(self.first.unwrap_or(sequence));
            let step = sequence - self.next_to_arrive + 1;
            let shift = u32::try_from(step).unwrap_or(u32::MAX);
            self.arrived = self.arrived.checked_shl(shift).unwrap_or(0) | 1;
            self.next_to_arrive = sequence + 1;
            return Arrival::Newest { skipped: sequence.saturating_sub(from) };
        };
        let bit = u32::try_from(back).ok().and_then(|back| 1_u64.checked_shl(back)).unwrap_or(0);
        if self.arrived & bit != 0 {
            return Arrival::Duplicate;
        }
        self.arrived |= bit;
        Arrival::Late
    }

    /// Measured frames that were sent after the newest one that arrived.
    pub(super) fn outstanding(&self) -> u64 {
        let from = self.next_to_arrive.max(self.first.unwrap_or(u64::MAX));
        self.next_to_send.saturating_sub(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_back_as_it_was_and_has_its_size() {
        let frame = Frame {
            stream: 0x81,
            device: Device::Mobile,
            run: 7,
            user: 70_000,
            sequence: 1 << 40,
            due: u64::MAX,
        };
        for (size, length) in [(300, 300), (26, 26), (0, 26)] {
            let bytes = frame.encode(size);
            assert_eq!((bytes.len(), bytes[0]), (length, 0x81));
            assert_eq!(Frame::decode(&bytes), Some(frame));
        }
        assert_eq!(Frame::decode(&frame.encode(26)[..25]), None);
        assert_eq!(Frame::decode(&[0; 300]), None);
    }

    fn flow(sent: u64) -> Flow {
        let mut flow = Flow::default();
        for _ in 0..sent {
            flow.send(true);
        }
        flow
    }

    #[test]
    fn gaps_late_frames_and_duplicates_are_distinguished() {
        let mut flow = flow(10);
        assert_eq!(flow.outstanding(), 10);
        assert_eq!(flow.arrive(0), Arrival::Newest { skipped: 0 });
        assert_eq!(flow.arrive(0), Arrival::Duplicate);
        assert_eq!(flow.arrive(4), Arrival::Newest { skipped: 3 });
        assert_eq!(flow.arrive(2), Arrival::Late);
        assert_eq!(flow.arrive(2), Arrival::Duplicate);
        assert_eq!(flow.arrive(4), Arrival::Duplicate);
        assert_eq!(flow.arrive(5), Arrival::Newest { skipped: 0 });
        assert_eq!(flow.outstanding(), 4);
        assert_eq!(flow.arrive(9), Arrival::Newest { skipped: 3 });
        assert_eq!(flow.outstanding(), 0);
    }

    #[test]
    fn the_first_frames_may_be_missing() {
        let mut flow = flow(10);
        assert_eq!(flow.arrive(3), Arrival::Newest { skipped: 3 });
        assert_eq!(flow.arrive(0), Arrival::Late);
    }

    #[test]
    fn the_window_moves_over_any_distance() {
        let mut flow = flow(1000);
        assert_eq!(flow.arrive(0), Arrival::Newest { skipped: 0 });
        assert_eq!(flow.arrive(64), Arrival::Newest { skipped: 63 });
        assert_eq!(flow.arrive(1), Arrival::Late);
        assert_eq!(flow.arrive(1), Arrival::Duplicate);
        assert_eq!(flow.arrive(999), Arrival::Newest { skipped: 934 });
        assert_eq!(flow.arrive(936), Arrival::Late);
        assert_eq!(flow.arrive(936), Arrival::Duplicate);
    }

    #[test]
    fn frames_of_the_warm_up_are_neither_skipped_nor_outstanding() {
        let mut flow = Flow::default();
        for _ in 0..5 {
            flow.send(false);
        }
        assert_eq!(flow.arrive(1), Arrival::Newest { skipped: 0 });
        assert!(!flow.is_measured(1));
        assert_eq!(flow.outstanding(), 0);
        for _ in 0..5 {
            flow.send(true);
        }
        assert!(!flow.is_measured(4) && flow.is_measured(5));
        assert_eq!(flow.outstanding(), 5);
        assert_eq!(flow.arrive(7), Arrival::Newest { skipped: 2 });
        assert_eq!(flow.outstanding(), 2);
    }
}
