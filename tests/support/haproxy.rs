//! A real HAProxy with the configuration that is shipped, and the DNS server that tells it where relays are.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use tokio::net::UdpSocket;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{LIMIT, free_address, free_port, request};

/// A running HAProxy (Debian's package `haproxy`) in front of relays that share a port; killed when dropped.
#[derive(Debug)]
pub struct HaProxy {
    child: Child,
    /// Where clients connect.
    pub address: SocketAddr,
    /// Where it looks for relays.
    pub relays: Vec<SocketAddr>,
    log: Arc<Mutex<String>>,
    dns: JoinHandle<()>,
}

impl HaProxy {
    /// In front of so many relays, which are to be started at [`Self::relays`].
    pub async fn start(relays: u8, affinity: &str) -> Self {
        let port = free_port();
        let addresses: Vec<_> = (0..relays).map(|number| Ipv4Addr::new(127, 0, 0, 2 + number)).collect();
        let resolver = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = free_address();
        // Where only root looks by itself.
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        let mut child = Command::new("haproxy")
            .args(["-db", "-f", concat!(env!("CARGO_MANIFEST_DIR"), "/k8s/compose/haproxy.cfg")])
            .env("PATH", path)
            .env("RELAYS", format!("relay:{port}"))
            .env("RELAY_SLOTS", "20")
            .env("RESOLVER", resolver.local_addr().unwrap().to_string())
            .env("LISTEN", address.to_string())
            .env("AFFINITY", affinity)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("haproxy (Debian's package haproxy)");
        let log = Arc::new(Mutex::new(String::new()));
        let (stdout, lines) = (child.stdout.take().unwrap(), log.clone());
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                lines.lock().unwrap().push_str(&format!("{line}\n"));
            }
        });
        let dns = tokio::spawn(answer(resolver, addresses.clone()));
        let relays = addresses.into_iter().map(|address| (address, port).into()).collect();
        Self { child, address, relays, log, dns }
    }

    /// Waits until this many relays take sockets.
    pub async fn wait_for(&self, relays: usize) {
        let deadline = Instant::now() + LIMIT;
        let mut pause = tokio::time::interval(std::time::Duration::from_millis(20));
        loop {
            pause.tick().await;
            let up = self.up();
            if up == relays
                && request(self.address, "GET", "/healthz/ready", &[], b"")
                    .await
                    .is_ok_and(|ready| ready.status == 200)
            {
                return;
            }
            assert!(Instant::now() < deadline, "{up} relays are up and not {relays}");
        }
    }

    /// Relays that it counts as up, by what it has said of each last.
    fn up(&self) -> usize {
        let log = self.log.lock().unwrap();
        let mut states = std::collections::BTreeMap::new();
        for line in log.lines() {
            let Some((_, rest)) = line.split_once("Server relays/") else { continue };
            let name = rest.split(' ').next().unwrap_or_default();
            if rest.contains(" is UP") || rest.contains(" is DOWN") {
                states.insert(name, rest.contains(" is UP"));
            }
        }
        states.values().filter(|is_up| **is_up).count()
    }
}

impl Drop for HaProxy {
    fn drop(&mut self) {
        self.dns.abort();
        // It can only have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the balancer's log ---\n{}---", self.log.lock().unwrap());
        }
    }
}

/// A DNS server (RFC 1035, section 4.1) with one name, whose addresses are these.
async fn answer(socket: UdpSocket, addresses: Vec<Ipv4Addr>) {
    const HEADER: usize = 12;
    const A: [u8; 2] = [0, 1];
    let mut buffer = [0; 1024];
    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
        let query = &buffer[..length];
        let Some(name_end) = query[HEADER..].iter().position(|byte| *byte == 0) else { continue };
        let question = &query[HEADER..HEADER + name_end + 5];
        let answers = if question[name_end + 1..name_end + 3] == A { addresses.len() } else { 0 };
        // The same id; an answer, recursion desired and available; one question, so many answers.
        let mut response =
            [&query[..2], &[0x81, 0x80, 0, 1, 0, u8::try_from(answers).unwrap(), 0, 0, 0, 0]].concat();
        response.extend(question);
        for address in addresses.iter().take(answers) {
            // The question's name (a pointer), A, IN, a time to live of 1 s, 4 bytes.
            response.extend([0xC0, 0x0C, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
            response.extend(address.octets());
        }
        let _ = socket.send_to(&response, from).await;
    }
}
