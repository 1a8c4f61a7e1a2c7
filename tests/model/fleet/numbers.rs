//! What a fleet is made of, and what a storm did, in numbers.

use std::collections::BTreeMap;
use std::time::Duration;

/// Seconds of CPU. A handshake's was measured, the others are assumed (`tests/CAPACITY.md`, "Storms").
#[derive(Debug, Clone, Copy)]
pub(super) struct Costs {
    /// A handshake that is welcomed, on its instance.
    pub handshake: f64,
    /// A handshake that is refused before its claim, or a call of `GET /v1/session`.
    pub refusal: f64,
    /// A claim with its subscription, on Redis.
    pub claim: f64,
    pub renewal: f64,
    pub subscription: f64,
    /// Commands of a claim: SUBSCRIBE, PING or SSUBSCRIBE, EVALSHA and two publishes in it.
    pub commands: f64,
}

/// How many sockets share an address.
#[derive(Debug, Clone, Copy)]
pub(super) struct Crowd {
    /// Of all sockets.
    pub share: f64,
    pub sockets: u32,
}

#[derive(Debug, Clone)]
pub(super) struct Fleet {
    pub instances: u16,
    pub sockets: u32,
    /// So many sockets for each simulated one.
    pub weight: u32,
    pub workers: u16,
    /// Cores of an instance, and the part of a Redis node's one, that handshakes may use.
    pub free: f64,
    pub redis_free: f64,
    pub nodes: u16,
    pub max_connections: f64,
    /// `DUORELAY_HANDSHAKES_PER_SECOND_PER_IP`; 0: any number.
    pub per_ip: u32,
    pub lease: Duration,
    /// How long sockets live; 0: for ever.
    pub lifetime: f64,
    pub crowds: &'static [Crowd],
    /// Part of the clients to which a failed handshake has no reason, as in a browser.
    pub browsers: f64,
    /// Part of the sockets that stream.
    pub streaming: f64,
    /// A user's next socket goes to the same instance while that lives.
    pub affinity: bool,
    pub costs: Costs,
}

/// What is lost at the time 0.
#[derive(Debug, Clone, Copy)]
pub(super) struct Loss {
    pub instances: u16,
    pub nodes: u16,
    /// Nobody resets the connections: clients and balancers have to notice it. The balancer does after so long.
    pub silent: Option<f64>,
    /// When a replica serves in a lost node's place.
    pub failover: f64,
}

#[derive(Default)]
pub(super) struct Queue {
    /// Until then it has work.
    pub busy: f64,
    pub longest: f64,
    /// What came in each second: instances' handshakes, nodes' commands.
    seconds: Vec<f64>,
}

impl Queue {
    /// When this work is done.
    pub(super) fn work(&mut self, now: f64, seconds: f64) -> f64 {
        self.busy = self.busy.max(now) + seconds;
        self.longest = self.longest.max(self.busy - now);
        self.busy
    }

    pub(super) fn count(&mut self, now: f64, number: f64) {
        let second = now as usize;
        if self.seconds.len() <= second {
            self.seconds.resize(second + 1, 0.0);
        }
        self.seconds[second] += number;
    }

    pub(super) fn peak(&self) -> f64 {
        self.seconds.iter().copied().fold(0.0, f64::max)
    }
}

/// What a storm did. Numbers of sockets are those of the whole fleet.
#[derive(Debug)]
pub(super) struct Outcomes {
    pub lost: f64,
    pub back: Vec<f64>,
    pub attempts: f64,
    pub refused: BTreeMap<&'static str, f64>,
    /// Handshakes a second on the busiest instance, and commands a second on the busiest node, in the worst second.
    pub instance_peak: f64,
    pub redis_peak: f64,
    /// The longest time that an instance's, and a node's work waited.
    pub instance_wait: f64,
    pub redis_wait: f64,
    pub late_renewals: f64,
    pub renewed_at: f64,
}

impl Outcomes {
    /// When this part of the lost sockets is back.
    pub(super) fn until(&self, part: f64) -> f64 {
        let place = ((self.back.len() as f64 * part).ceil() as usize).clamp(1, self.back.len());
        self.back.get(place - 1).copied().unwrap_or(0.0)
    }

    pub(super) fn refused_in_all(&self) -> f64 {
        self.refused.values().sum()
    }
}
