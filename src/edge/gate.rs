//! Which handshakes may come in: how many at all, how many from one address, from which origins, and whether this
//! instance takes anybody at all.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use http::HeaderMap;
use ipnet::IpNet;
use tracing::warn;

use crate::relay::address::{Address, Crowd};
use crate::relay::refusal::Refusal;

/// The number of maps that keep the addresses, each with a lock of its own. All workers look into them, and a
/// sweep may find very many. It holds up no worker for long.
const SHARDS: usize = 64;

/// The door of an instance, for all of its threads.
#[derive(Debug)]
pub struct Gate {
    open: AtomicU32,
    max_connections: Option<u32>,
    draining: AtomicBool,
    closed: AtomicBool,
    short_of_memory: AtomicBool,
    /// Handshakes that are refused, each second from one address.
    handshakes_per_second: Option<u32>,
    addresses: [Mutex<HashMap<IpAddr, Address>>; SHARDS],
    sharding: RandomState,
    /// Locked behind one of the addresses, never before.
    crowd: Mutex<Crowd>,
    trusted_proxies: Vec<IpNet>,
    allowed_origins: Option<Vec<String>>,
}

/// A handshake as its address is charged for it: as an unproven one, until its token is found good.
#[derive(Debug)]
pub struct Visit {
    gate: Arc<Gate>,
    network: IpAddr,
    is_proven: bool,
}

impl Visit {
    /// Its token is good.
    pub fn on_proven(&mut self) {
        if !self.is_proven {
            self.is_proven = true;
            self.gate.charge(self.network, |address, per_second, _| address.on_proven(per_second));
        }
    }

    /// It is refused, which is dear unless it is the relay that is in no state to let it in.
    pub fn on_refused(&mut self, refusal: Refusal) {
        if refusal.status() == 503 {
            self.on_proven();
        } else if self.is_proven {
            self.is_proven = false;
            self.gate.charge(self.network, Address::on_refused);
        }
    }
}

/// A connection's place; dropping it makes room for another.
#[derive(Debug)]
pub struct Admission(Arc<Gate>);

impl Drop for Admission {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Gate {
    /// A door that is open.
    #[must_use]
    pub fn new(
        max_connections: Option<u32>,
        handshakes_per_second: Option<u32>,
        trusted_proxies: Vec<IpNet>,
        allowed_origins: Option<Vec<String>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            open: AtomicU32::new(0),
            max_connections,
            draining: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            short_of_memory: AtomicBool::new(false),
            handshakes_per_second: handshakes_per_second.filter(|limit| *limit > 0),
            addresses: std::array::from_fn(|_| Mutex::default()),
            sharding: RandomState::new(),
            crowd: Mutex::default(),
            trusted_proxies,
            allowed_origins,
        })
    }

    /// Connections that are open or in their handshake.
    #[must_use]
    pub fn connections(&self) -> u32 {
        self.open.load(Ordering::Acquire)
    }

    /// True from the beginning of a drain.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// This instance leaves; handshakes are still let in.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// No handshake is let in any more.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Nobody new is let in while memory is short; true when that is news.
    pub fn set_short_of_memory(&self, is_short: bool) -> bool {
        self.short_of_memory.swap(is_short, Ordering::AcqRel) != is_short
    }

    /// The addresses among which this one is.
    fn addresses(&self, network: IpAddr) -> MutexGuard<'_, HashMap<IpAddr, Address>> {
        let shard = self.sharding.hash_one(network) % SHARDS as u64;
        lock(&self.addresses[usize::try_from(shard).unwrap_or(0)])
    }

    fn charge<T: Default>(&self, network: IpAddr, charge: impl FnOnce(&mut Address, u32, Instant) -> T) -> T {
        match self.handshakes_per_second {
            Some(per_second) => {
                charge(self.addresses(network).entry(network).or_default(), per_second, Instant::now())
            }
            None => T::default(),
        }
    }

    /// Counts a handshake for its address, before anything else is looked at.
    ///
    /// # Errors
    /// [`Refusal::TooManyAttempts`]
    pub fn visit(self: &Arc<Self>, peer: SocketAddr, headers: &HeaderMap) -> Result<Visit, Refusal> {
        let (client, is_proxied) = self.client_address(peer.ip(), headers);
        let visit = Visit { gate: Arc::clone(self), network: network_of(client), is_proven: false };
        let Some(per_second) = self.handshakes_per_second else {
            return Ok(visit);
        };
        let mut addresses = self.addresses(visit.network);
        let (address, now) = (addresses.entry(visit.network).or_default(), Instant::now());
        if is_proxied && lock(&self.crowd).on_handshake(address, is_public(client), now) {
            warn!(
                client.address = %client,
                "most handshakes of the last minute come through trusted proxies from one public address: if it is a \
                 balancer's, add it to DUORELAY_TRUSTED_PROXIES; until then its clients share one limit"
            );
        }
        match address.on_handshake(per_second, now) {
            Ok(()) => Ok(visit),
            Err(retry_after) => Err(Refusal::TooManyAttempts { retry_after }),
        }
    }

    /// Counts a call of `GET /v1/session` for its address.
    ///
    /// # Errors
    /// [`Refusal::TooManyAttempts`], also when the address has no handshake left.
    pub fn visit_session(&self, peer: SocketAddr, headers: &HeaderMap) -> Result<(), Refusal> {
        let network = network_of(self.client_address(peer.ip(), headers).0);
        let asked =
            self.charge(network, |address, per_second, now| address.on_session(per_second, now).err());
        asked.map_or(Ok(()), |retry_after| Err(Refusal::TooManyAttempts { retry_after }))
    }

    /// Gives a connection a place, or refuses it, in the order of [`Refusal`]: draining, full.
    ///
    /// # Errors
    /// The first refusal that applies.
    pub fn admit(self: &Arc<Self>) -> Result<Admission, Refusal> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Refusal::Draining);
        }
        if self.short_of_memory.load(Ordering::Acquire) {
            return Err(Refusal::Full);
        }
        let max = self.max_connections.unwrap_or(u32::MAX);
        let more = |open| (open < max).then_some(open + 1);
        if self.open.try_update(Ordering::AcqRel, Ordering::Acquire, more).is_err() {
            return Err(Refusal::Full);
        }
        Ok(Admission(Arc::clone(self)))
    }

    /// May the page that sent this request connect? Browsers cannot be made to leave the Origin out (RFC 6454 section 7);
    /// a request without one comes from no page.
    ///
    /// # Errors
    /// [`Refusal::OriginNotAllowed`]
    pub fn admit_page(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let is_allowed =
            headers.get(http::header::ORIGIN).is_none_or(|origin| self.allows(origin.as_bytes()));
        if is_allowed { Ok(()) } else { Err(Refusal::OriginNotAllowed) }
    }

    /// May pages of this origin connect?
    #[must_use]
    pub fn allows(&self, origin: &[u8]) -> bool {
        let Some(allowed) = &self.allowed_origins else {
            return true;
        };
        allowed.iter().any(|allowed| origin.eq_ignore_ascii_case(allowed.as_bytes()))
    }

    /// True when pages of any origin may connect.
    #[must_use]
    pub const fn allows_any_origin(&self) -> bool {
        self.allowed_origins.is_none()
    }

    /// The address of the client: the rightmost one of `X-Forwarded-For` that is not a trusted proxy's,
    /// if the request comes from a trusted proxy. What stands left of it could be anybody's invention. True beside it
    /// when a trusted proxy named it.
    fn client_address(&self, peer: IpAddr, headers: &HeaderMap) -> (IpAddr, bool) {
        let peer = peer.to_canonical();
        let is_trusted = |address: &IpAddr| self.trusted_proxies.iter().any(|net| net.contains(address));
        if !is_trusted(&peer) {
            return (peer, false);
        }
        let values = headers.get_all("x-forwarded-for").into_iter().rev();
        let hops = values.flat_map(|value| value.to_str().unwrap_or_default().rsplit(',').map(str::trim));
        let mut client = peer;
        for hop in hops {
            let Some(address) = parse_hop(hop) else {
                break;
            };
            client = address;
            if !is_trusted(&client) {
                break;
            }
        }
        (client, true)
    }

    /// The network of a TCP connection's other end; `None` for a trusted proxy, which speaks for many.
    #[must_use]
    pub fn network_of_client(&self, peer: IpAddr) -> Option<IpAddr> {
        let peer = peer.to_canonical();
        let is_proxy = self.trusted_proxies.iter().any(|net| net.contains(&peer));
        (!is_proxy).then(|| network_of(peer))
    }

    /// [`Self::client_address`], for the fuzz targets.
    #[cfg(fuzzing)]
    pub fn fuzz_client_address(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        self.client_address(peer, headers).0
    }

    /// Forgets addresses that have not come lately; called now and then, so that memory stays bounded.
    pub fn sweep(&self) {
        let now = Instant::now();
        for addresses in &self.addresses {
            let mut addresses = lock(addresses);
            addresses.retain(|_, address| !address.is_forgettable(now));
            addresses.shrink_to_fit();
        }
    }
}

fn lock<T>(part: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing in there can be half done.
    part.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Neither a private network's address nor one of this machine or link: a client's own, or a balancer's of a provider.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let is_shared = v4.octets()[0] == 100 && v4.octets()[1] & 0xC0 == 64; // RFC 6598
            !(v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_unspecified() || is_shared)
        }
        IpAddr::V6(v6) => {
            !(v6.is_loopback() || v6.is_unspecified() || v6.is_unique_local() || v6.is_unicast_link_local())
        }
    }
}

fn parse_hop(hop: &str) -> Option<IpAddr> {
    let address =
        hop.parse::<IpAddr>().ok().or_else(|| hop.parse::<SocketAddr>().ok().map(|address| address.ip()));
    address.map(|address| address.to_canonical())
}

/// One client usually has a whole /64 of IPv6 (RFC 6177): the network is what counts.
fn network_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(list: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in list {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn peer(address: &str) -> SocketAddr {
        SocketAddr::new(address.parse().unwrap(), 4711)
    }

    #[test]
    fn a_full_relay_is_full_and_a_closed_one_draining() {
        let gate = Gate::new(Some(1), None, vec![], None);
        let _first = gate.admit().unwrap();
        assert_eq!(gate.admit().unwrap_err(), Refusal::Full);
        gate.close();
        assert_eq!(gate.admit().unwrap_err(), Refusal::Draining);
    }

    #[test]
    fn a_handshake_that_is_refused_is_dear_unless_the_relay_is_at_fault() {
        let come = |refusal: Option<Refusal>| {
            let gate = Gate::new(None, Some(2), vec![], None);
            let none = HeaderMap::new();
            let came = (0..100).take_while(|_| match gate.visit(peer("192.0.2.1"), &none) {
                Ok(mut visit) => {
                    match refusal {
                        Some(refusal) => visit.on_refused(refusal),
                        None => visit.on_proven(),
                    }
                    true
                }
                Err(_) => false,
            });
            came.count()
        };
        assert_eq!(come(None), 10);
        assert_eq!(come(Some(Refusal::Full)), 10);
        assert_eq!(come(Some(Refusal::MissingToken)), 2);
        assert_eq!(come(Some(Refusal::TooManyAttempts { retry_after: 1 })), 2);
    }

    #[test]
    fn public_addresses_are_told_from_private_ones() {
        for public in ["34.120.1.2", "198.51.100.7", "100.128.0.1", "2600:1901::1"] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for private in ["10.1.2.3", "127.0.0.1", "169.254.1.1", "100.64.0.1", "fd00::1", "fe80::1", "::1"] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
    }

    #[test]
    fn pages_of_listed_origins_are_let_in_and_what_is_no_page() {
        let gate = Gate::new(None, None, vec![], Some(vec!["https://app.example".into()]));
        let of = |origin: &str| gate.admit_page(&headers(&[("origin", origin)]));
        assert_eq!(gate.admit_page(&HeaderMap::new()), Ok(()));
        assert_eq!(of("https://APP.example"), Ok(()));
        for other in ["https://evil.example", "null", "", "https://app.example.evil.example"] {
            assert_eq!(of(other), Err(Refusal::OriginNotAllowed), "{other}");
        }
    }

    #[test]
    fn a_place_is_free_again_when_its_connection_ends() {
        let gate = Gate::new(Some(1), None, vec![], None);
        let first = gate.admit().unwrap();
        assert!(gate.admit().is_err());
        drop(first);
        assert!(gate.admit().is_ok());
        assert_eq!(gate.connections(), 0);
    }

    #[test]
    fn nobody_new_comes_in_while_memory_is_short() {
        let gate = Gate::new(None, None, vec![], None);
        let first = gate.admit().unwrap();
        assert!(gate.set_short_of_memory(true) && !gate.set_short_of_memory(true));
        assert_eq!(gate.admit().unwrap_err(), Refusal::Full);
        assert_eq!(gate.connections(), 1, "who is here stays");
        assert!(gate.set_short_of_memory(false));
        assert!(gate.admit().is_ok());
        drop(first);
    }

    #[test]
    fn only_trusted_proxies_tell_the_client() {
        let proxies = vec!["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
        let gate = Gate::new(None, None, proxies, None);
        let table: [(&str, &[&str], &str); 8] = [
            ("192.0.2.1", &["198.51.100.7"], "192.0.2.1"),
            ("10.0.0.1", &["198.51.100.7"], "198.51.100.7"),
            ("10.0.0.1", &["6.6.6.6, 198.51.100.7, 10.2.3.4"], "198.51.100.7"),
            ("10.0.0.1", &["6.6.6.6", "198.51.100.7,10.2.3.4"], "198.51.100.7"),
            ("::ffff:10.0.0.1", &["[2001:db9::1]:4711"], "2001:db9::1"),
            ("10.0.0.1", &["10.9.9.9"], "10.9.9.9"),
            ("10.0.0.1", &["198.51.100.7, nonsense"], "10.0.0.1"),
            ("10.0.0.1", &[], "10.0.0.1"),
        ];
        for (from, forwarded, client) in table {
            let list: Vec<_> = forwarded.iter().map(|value| ("x-forwarded-for", *value)).collect();
            let client: IpAddr = client.parse().unwrap();
            assert_eq!(
                gate.client_address(from.parse().unwrap(), &headers(&list)).0,
                client,
                "{from} {forwarded:?}"
            );
        }
    }

    #[test]
    fn an_ipv6_client_cannot_use_its_many_addresses() {
        let gate = Gate::new(None, Some(1), vec![], None);
        assert!(gate.visit(peer("2001:db8::1"), &HeaderMap::new()).is_ok());
        assert!(gate.visit(peer("2001:db8::2"), &HeaderMap::new()).is_err());
        assert!(gate.visit(peer("2001:db8:0:1::1"), &HeaderMap::new()).is_ok());
    }
}
