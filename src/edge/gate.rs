//! Who may come in: how many at all, how many from one address, from which origins, and whether this
//! instance takes anybody at all.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use http::HeaderMap;
use ipnet::IpNet;

use crate::relay::refusal::Refusal;

/// The door of an instance.
#[derive(Debug)]
pub struct Gate {
    open: AtomicU32,
    max_connections: Option<u32>,
    draining: AtomicBool,
    closed: AtomicBool,
    short_of_memory: AtomicBool,
    /// governor's generic cell rate algorithm keeps one number per address; a burst is one second's worth.
    per_address: Option<DefaultKeyedRateLimiter<IpAddr>>,
    trusted_proxies: Vec<IpNet>,
    allowed_origins: Option<Vec<String>>,
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
        let quota = handshakes_per_second.and_then(NonZeroU32::new).map(Quota::per_second);
        Arc::new(Self {
            open: AtomicU32::new(0),
            max_connections,
            draining: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            short_of_memory: AtomicBool::new(false),
            per_address: quota.map(RateLimiter::keyed),
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

    /// Lets a handshake in, or refuses it, in the order of [`Refusal`]: too many attempts, draining, full.
    ///
    /// # Errors
    /// The first refusal that applies.
    pub fn admit(self: &Arc<Self>, peer: SocketAddr, headers: &HeaderMap) -> Result<Admission, Refusal> {
        if let Some(limiter) = &self.per_address
            && let Err(not_until) = limiter.check_key(&network_of(self.client_address(peer.ip(), headers)))
        {
            let wait = not_until.wait_time_from(DefaultClock::default().now());
            let retry_after = u32::try_from(wait.as_secs() + 1).unwrap_or(u32::MAX);
            return Err(Refusal::TooManyAttempts { retry_after });
        }
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
    /// if the request comes from a trusted proxy. What stands left of it could be anybody's invention.
    fn client_address(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let peer = peer.to_canonical();
        let is_trusted = |address: &IpAddr| self.trusted_proxies.iter().any(|net| net.contains(address));
        if !is_trusted(&peer) {
            return peer;
        }
        let values = headers.get_all("x-forwarded-for").into_iter().rev();
        let hops = values.flat_map(|value| value.to_str().unwrap_or_default().rsplit(',').map(str::trim));
        let mut client = peer;
        for hop in hops {
            let Some(address) = parse_hop(hop) else {
                return client;
            };
            client = address;
            if !is_trusted(&client) {
                break;
            }
        }
        client
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
        self.client_address(peer, headers)
    }

    /// Forgets addresses that have not come lately; called now and then, so that memory stays bounded.
    pub fn sweep(&self) {
        if let Some(limiter) = &self.per_address {
            limiter.retain_recent();
            limiter.shrink_to_fit();
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
    fn refusals_come_in_their_order() {
        let gate = Gate::new(Some(1), Some(2), vec![], None);
        let (from, none) = (peer("192.0.2.1"), HeaderMap::new());
        let _first = gate.admit(from, &none).unwrap();
        assert_eq!(gate.admit(from, &none).unwrap_err(), Refusal::Full);
        assert_eq!(gate.admit(from, &none).unwrap_err(), Refusal::TooManyAttempts { retry_after: 1 });
        gate.close();
        assert_eq!(gate.admit(peer("192.0.2.2"), &none).unwrap_err(), Refusal::Draining);
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
        let first = gate.admit(peer("::1"), &HeaderMap::new()).unwrap();
        assert!(gate.admit(peer("::1"), &HeaderMap::new()).is_err());
        drop(first);
        assert!(gate.admit(peer("::1"), &HeaderMap::new()).is_ok());
        assert_eq!(gate.connections(), 0);
    }

    #[test]
    fn nobody_new_comes_in_while_memory_is_short() {
        let gate = Gate::new(None, None, vec![], None);
        let from = peer("192.0.2.1");
        let first = gate.admit(from, &HeaderMap::new()).unwrap();
        assert!(gate.set_short_of_memory(true) && !gate.set_short_of_memory(true));
        assert_eq!(gate.admit(from, &HeaderMap::new()).unwrap_err(), Refusal::Full);
        assert_eq!(gate.connections(), 1, "who is here stays");
        assert!(gate.set_short_of_memory(false));
        assert!(gate.admit(from, &HeaderMap::new()).is_ok());
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
                gate.client_address(from.parse().unwrap(), &headers(&list)),
                client,
                "{from} {forwarded:?}"
            );
        }
    }

    #[test]
    fn an_ipv6_client_cannot_use_its_many_addresses() {
        let gate = Gate::new(None, Some(1), vec![], None);
        assert!(gate.admit(peer("2001:db8::1"), &HeaderMap::new()).is_ok());
        assert!(gate.admit(peer("2001:db8::2"), &HeaderMap::new()).is_err());
        assert!(gate.admit(peer("2001:db8:0:1::1"), &HeaderMap::new()).is_ok());
    }
}
