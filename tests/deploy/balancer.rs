//! A real HAProxy with the shipped configuration, used as it is: a small DNS server stands in for the one
//! of the container engine and knows every relay.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::time::Instant;

use crate::support::{LIMIT, free_address, free_port, request};

/// A running HAProxy; killed when dropped.
#[derive(Debug)]
pub struct Balancer {
    child: Child,
    /// Where clients connect.
    pub public: SocketAddr,
}

impl Balancer {
    /// In front of whatever listens on `port` of `relays`; at least one of them must be ready.
    pub async fn start(relays: Vec<Ipv4Addr>, port: u16, affinity: &str) -> Self {
        let public = free_address();
        let child = Command::new("haproxy")
            .args(["-db", "-f"])
            .arg(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/k8s/compose/haproxy.cfg"
            ))
            .env("RELAYS", format!("relays.test:{port}"))
            .env("RELAY_SLOTS", relays.len().to_string())
            .env("RESOLVER", resolver(relays).to_string())
            .env("LISTEN", public.to_string())
            .env("AFFINITY", affinity)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("HAProxy is installed (Debian's package `haproxy`; its directory is in PATH)");
        let mut balancer = Self { child, public };
        let deadline = Instant::now() + LIMIT;
        let mut pause = tokio::time::interval(Duration::from_millis(20));
        loop {
            pause.tick().await;
            assert!(
                balancer.child.try_wait().unwrap().is_none(),
                "HAProxy ended"
            );
            let answer = request(public, "GET", "/healthz/ready", &[], b"").await;
            if answer.is_ok_and(|answer| answer.status == 200) {
                return balancer;
            }
            assert!(Instant::now() < deadline, "no relay behind HAProxy");
        }
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // It can only have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A DNS server that answers every question for IPv4 addresses (RFC 1035 section 4) with `addresses`, and
/// every other with none; it lives as long as the test's process.
fn resolver(addresses: Vec<Ipv4Addr>) -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, free_port())).unwrap();
    let listen = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut query = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut query) {
            let query = &query[..length];
            // After the header of 12 bytes: labels up to an empty one, type, class.
            let name = query[12..].iter().position(|&byte| byte == 0).unwrap();
            let question = &query[12..12 + name + 5];
            let is_ipv4 = question[name + 1..name + 3] == [0, 1];
            let answers = if is_ipv4 { addresses.as_slice() } else { &[] };
            let mut answer = query[..2].to_vec();
            answer.extend([
                0x81,
                0x80,
                0,
                1,
                0,
                u8::try_from(answers.len()).unwrap(),
                0,
                0,
                0,
                0,
            ]);
            answer.extend(question);
            for address in answers {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
                answer.extend(address.octets());
            }
            socket.send_to(&answer, from).unwrap();
        }
    });
    listen
}
