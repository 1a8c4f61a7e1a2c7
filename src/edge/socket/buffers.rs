//! The buffers that all sockets of a worker share: a socket has one only while its task runs, so that a silent
//! connection holds none.

use std::cell::Cell;

/// Bytes that one read may bring.
const READ: usize = 16 * 1024;
/// A write buffer that has grown past this is given back.
const KEEP: usize = 128 * 1024;

/// One buffer to read into, one to gather messages in.
#[derive(Default)]
pub(super) struct Buffers {
    read: Cell<Vec<u8>>,
    write: Cell<Vec<u8>>,
}

impl Buffers {
    /// A buffer to read into; it is as long as one read may be.
    pub(super) fn read(&self) -> Vec<u8> {
        let mut buffer = self.read.take();
        buffer.resize(READ, 0);
        buffer
    }

    /// The buffer to read into comes back.
    pub(super) fn return_read(&self, buffer: Vec<u8>) {
        self.read.set(buffer);
    }

    /// An empty buffer to gather messages in.
    pub(super) fn write(&self) -> Vec<u8> {
        self.write.take()
    }

    /// The buffer to gather messages in comes back.
    pub(super) fn return_write(&self, mut buffer: Vec<u8>) {
        if buffer.capacity() <= KEEP {
            buffer.clear();
            self.write.set(buffer);
        }
    }
}
