//! A thin path over TCP: so many bytes a second, and kernels on both sides that hold little.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

/// What the path carries. The default is everything.
#[derive(Debug, Clone, Copy, Default)]
pub struct Carries {
    /// Bytes a second from the device; none is no limit.
    pub up: Option<f64>,
    /// Bytes a second to it.
    pub down: Option<f64>,
    /// The receive buffer before a thin way, as Linux reports it.
    pub buffer: u32,
    /// `TCP_MAXSEG` before a thin way, so that loopback behaves like a path.
    pub maxseg: Option<u32>,
}

impl Carries {
    fn prepare(self, socket: &TcpSocket, is_thin: bool) {
        if is_thin {
            // Linux doubles what it is given.
            socket.set_recv_buffer_size(self.buffer / 2).unwrap();
            if let Some(maxseg) = self.maxseg {
                SockRef::from(socket).set_tcp_mss(maxseg).unwrap();
            }
        }
    }
}

/// A running path; cut when dropped.
#[derive(Debug)]
pub struct Path {
    /// Where the device connects.
    pub address: SocketAddr,
    task: AbortHandle,
}

impl Path {
    pub fn start(target: SocketAddr, carries: Carries) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        // What is accepted inherits these.
        carries.prepare(&socket, carries.up.is_some());
        socket.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let listener = socket.listen(16).unwrap();
        let address = listener.local_addr().unwrap();
        Self { address, task: tokio::spawn(listen(listener, target, carries)).abort_handle() }
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(listener: TcpListener, target: SocketAddr, carries: Carries) {
    // Ends with its task.
    let mut pairs = JoinSet::new();
    while let Ok((near, _)) = listener.accept().await {
        pairs.spawn(pair(near, target, carries));
    }
}

async fn pair(near: TcpStream, target: SocketAddr, carries: Carries) {
    let socket = TcpSocket::new_v4().unwrap();
    carries.prepare(&socket, carries.down.is_some());
    let Ok(far) = socket.connect(target).await else { return };
    for stream in [&near, &far] {
        stream.set_nodelay(true).unwrap();
    }
    let (from_device, to_device) = near.into_split();
    let (from_relay, to_relay) = far.into_split();
    tokio::join!(carry(from_device, to_relay, carries.up), carry(from_relay, to_device, carries.down));
}

async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    bytes_per_second: Option<f64>,
) {
    /// A packet of a thin link, and how long one may take.
    const PACKET: f64 = 256.0;
    const TURN: f64 = 0.02;
    let mut chunk = vec![0; bytes_per_second.map_or(65_536, |rate| PACKET.max(rate * TURN) as usize)];
    let mut free = Instant::now();
    while let Ok(read @ 1..) = from.read(&mut chunk).await {
        if let Some(rate) = bytes_per_second {
            // A machine that was late for a turn makes up for it.
            let start = free.max(Instant::now() - Duration::from_millis(50));
            free = start + Duration::from_secs_f64(read as f64 / rate);
            sleep_until(free).await;
        }
        if to.write_all(&chunk[..read]).await.is_err() {
            return;
        }
    }
    // The other way goes on until it ends, too.
    let _ = to.shutdown().await;
}
