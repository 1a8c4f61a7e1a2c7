//! The byte stream under a WebSocket, and how it moves from the worker that accepted it to its user's.

use std::io;
use std::net::TcpStream as StdTcpStream;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::places::Tunnel;

/// Unsent bytes above which the kernel takes no more (`TCP_NOTSENT_LOWAT`, tcp(7)). Frames that cannot leave
/// wait in the outbox, where newer ones replace them, and not in the kernel.
const NOTSENT_LOWAT: u32 = 1;

/// A stream on its way to its user's worker.
#[derive(Debug)]
pub enum MovingStream {
    /// A TCP socket that this worker has accepted.
    Here(TcpStream),
    /// A TCP socket that another worker has accepted, registered with no runtime.
    Away(StdTcpStream),
    /// A stream inside an HTTP/2 connection (RFC 8441), which stays where it was accepted.
    Tunnel(Box<TokioIo<Upgraded>>, Tunnel),
}

/// A stream on its worker.
#[derive(Debug)]
pub enum Stream {
    /// A TCP socket of its own.
    Tcp(TcpStream),
    /// A stream inside an HTTP/2 connection.
    Tunnel(Box<TokioIo<Upgraded>>, Tunnel),
    /// One end of a pipe in memory.
    #[cfg(test)]
    Memory(tokio::io::DuplexStream),
}

impl MovingStream {
    /// Registers the stream with this thread's runtime, where it comes from another's.
    ///
    /// # Errors
    /// What the system says.
    pub fn arrive(self) -> io::Result<Stream> {
        match self {
            Self::Here(stream) => Ok(Stream::Tcp(stream)),
            Self::Away(stream) => TcpStream::from_std(stream).map(Stream::Tcp),
            Self::Tunnel(stream, tunnel) => Ok(Stream::Tunnel(stream, tunnel)),
        }
    }
}

impl Stream {
    /// Resets TCP when the stream is dropped, instead of closing it in order.
    pub fn reset_on_drop(&self) {
        if let Self::Tcp(stream) = self {
            // Best effort: a socket that is gone already needs no reset.
            let _ = socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }
}

/// What every accepted socket gets.
///
/// # Errors
/// What the system says.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(stream).set_tcp_notsent_lowat(NOTSENT_LOWAT)?;
    Ok(())
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tunnel(stream, _) => Pin::new(stream).poll_read(cx, buffer),
            #[cfg(test)]
            Self::Memory(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buffer),
            Self::Tunnel(stream, _) => Pin::new(stream).poll_write(cx, buffer),
            #[cfg(test)]
            Self::Memory(stream) => Pin::new(stream).poll_write(cx, buffer),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tunnel(stream, _) => Pin::new(stream).poll_flush(cx),
            #[cfg(test)]
            Self::Memory(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tunnel(stream, _) => Pin::new(stream).poll_shutdown(cx),
            #[cfg(test)]
            Self::Memory(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
