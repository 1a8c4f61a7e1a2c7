//! A DNS server with one name, which answers balancers with the relays' addresses.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

/// A running DNS server; it ends when dropped.
#[derive(Debug)]
pub struct Dns {
    /// Where it is asked, over UDP.
    pub address: SocketAddr,
    addresses: Arc<Mutex<Vec<Ipv4Addr>>>,
    task: JoinHandle<()>,
}

impl Dns {
    /// Answers every question for an address with these.
    pub async fn start(addresses: Vec<Ipv4Addr>) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        let addresses = Arc::new(Mutex::new(addresses));
        let task = tokio::spawn(answer(socket, addresses.clone()));
        Self { address, addresses, task }
    }

    /// From now on it answers with these.
    pub fn set(&self, addresses: Vec<Ipv4Addr>) {
        *self.addresses.lock().unwrap() = addresses;
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// RFC 1035, section 4.1.
async fn answer(socket: UdpSocket, addresses: Arc<Mutex<Vec<Ipv4Addr>>>) {
    const HEADER: usize = 12;
    const A: [u8; 2] = [0, 1];
    let mut buffer = [0; 1024];
    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
        let query = &buffer[..length];
        let Some(name_end) = query[HEADER..].iter().position(|byte| *byte == 0) else { continue };
        let question = &query[HEADER..HEADER + name_end + 5];
        let is_address = question[name_end + 1..name_end + 3] == A;
        let addresses = if is_address { addresses.lock().unwrap().clone() } else { Vec::new() };
        // The same id; an answer, recursion desired and available; one question, so many answers.
        let count = u8::try_from(addresses.len()).unwrap();
        let mut response = [&query[..2], &[0x81, 0x80, 0, 1, 0, count, 0, 0, 0, 0]].concat();
        response.extend(question);
        for address in addresses {
            // The question's name (a pointer), A, IN, a time to live of 1 s, 4 bytes.
            response.extend([0xC0, 0x0C, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
            response.extend(address.octets());
        }
        let _ = socket.send_to(&response, from).await;
    }
}
