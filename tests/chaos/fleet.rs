//! The instances and their Redis, and the troubles that befall them.

use std::net::SocketAddr;
use std::sync::Mutex as StdMutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, sleep_until};

use crate::record::Record;
use crate::schedule::{Fault, Trouble};
use crate::support::{Config, Issuer, Proxy, RedisServer, Relay};

pub const INSTANCES: usize = 4;
pub const LEASE: Duration = Duration::from_secs(3);
const HEARTBEAT: Duration = Duration::from_secs(3);
const DRAIN_DELAY: u64 = 1;
const DRAIN: u64 = 3;
/// The contract: 2 s after delay and drain time; and what a busy machine may add.
const LEAVES_WITHIN: Duration = Duration::from_secs(DRAIN_DELAY + DRAIN + 2 + 2);

/// A process that can be reached.
#[derive(Debug, Clone, Copy)]
pub struct Process {
    pub place: usize,
    pub number: usize,
    pub address: SocketAddr,
}

struct Place {
    /// Held by the trouble that it is in: whoever is in trouble has no other one.
    trouble: Mutex<()>,
    relay: Mutex<Option<Relay>>,
    /// Where clients find it; clients never get the address of one that is gone.
    process: StdMutex<Option<Process>>,
    line: Proxy,
    config: Config,
}

/// What one process holds.
#[derive(Debug, Clone, Copy)]
pub struct Holdings {
    pub resident: u64,
    pub files: usize,
}

/// Four instances, each with its own line to one Redis.
pub struct Fleet {
    places: Vec<Place>,
    redis: Mutex<Option<RedisServer>>,
    redis_trouble: Mutex<()>,
    redis_address: SocketAddr,
    processes: AtomicUsize,
    _issuer: Issuer,
}

impl Fleet {
    pub async fn start() -> Self {
        let issuer = Issuer::start();
        let redis = RedisServer::start().await;
        let places = join_all((0..INSTANCES).map(async |_| {
            let line = Proxy::start(redis.address()).await;
            let config = Config::new(&issuer)
                .set("REDIS_URL", format!("redis://{}", line.address()))
                .set("RUST_LOG", "info")
                .set("DUORELAY_WORKERS", 2)
                .set("DUORELAY_LEASE_SECONDS", LEASE.as_secs())
                .set("DUORELAY_HEARTBEAT_SECONDS", HEARTBEAT.as_secs())
                .set("DUORELAY_DRAIN_DELAY_SECONDS", DRAIN_DELAY)
                .set("DUORELAY_DRAIN_SECONDS", DRAIN)
                .set("DUORELAY_MAX_LIFETIME_SECONDS", 30);
            Place {
                trouble: Mutex::default(),
                relay: Mutex::default(),
                process: StdMutex::default(),
                line,
                config,
            }
        }))
        .await;
        let redis_address = redis.address();
        let fleet = Self {
            places,
            redis: Mutex::new(Some(redis)),
            redis_trouble: Mutex::default(),
            redis_address,
            processes: AtomicUsize::new(0),
            _issuer: issuer,
        };
        join_all((0..INSTANCES).map(|place| fleet.start_at(place, "/healthz/ready"))).await;
        fleet
    }

    async fn start_at(&self, place: usize, until: &str) {
        let it = &self.places[place];
        let relay = it.config.start_until(until).await;
        let number = self.processes.fetch_add(1, Ordering::Relaxed);
        *it.process.lock().unwrap() = Some(Process { place, number, address: relay.public });
        *it.relay.lock().await = Some(relay);
    }

    /// Whom clients find at a place.
    pub fn process(&self, place: usize) -> Option<Process> {
        *self.places[place % INSTANCES].process.lock().unwrap()
    }

    async fn signal(&self, place: usize, name: &str) {
        if let Some(relay) = &*self.places[place].relay.lock().await {
            relay.signal(name);
        }
    }

    /// Waits until everything is ready again.
    pub async fn wait_until_ready(&self) {
        for place in 0..INSTANCES {
            let relay = self.places[place].relay.lock().await;
            let relay = relay.as_ref().expect("every place is taken again");
            relay.wait_for_metric("duorelay_backplane_up", &[], 1.0).await;
        }
    }

    /// Lets all of this happen, each at its time.
    pub async fn suffer(&self, schedule: &[Fault], record: &Record) {
        let start = Instant::now();
        join_all(schedule.iter().map(async |fault| {
            sleep_until(start + fault.at).await;
            let gate =
                fault.trouble.instance().map_or(&self.redis_trouble, |place| &self.places[place].trouble);
            let _alone = gate.lock().await;
            let noted = record.fault_begins(fault.trouble);
            self.inflict(fault, record).await;
            record.fault_ends(noted);
        }))
        .await;
    }

    async fn inflict(&self, fault: &Fault, record: &Record) {
        match fault.trouble {
            Trouble::Kill(place) => {
                let process = self.places[place].process.lock().unwrap().take();
                record.killed(process.expect("nobody else is at it").number);
                self.signal(place, "KILL").await;
                let relay = self.places[place].relay.lock().await.take();
                check_log(&relay.unwrap(), record);
                sleep(fault.lasts).await;
                self.start_at(place, "/healthz/live").await;
            }
            Trouble::Leave(place) => {
                self.signal(place, "TERM").await;
                let relay = self.places[place].relay.lock().await.take().unwrap();
                leaves(relay, record).await;
                self.start_at(place, "/healthz/live").await;
            }
            Trouble::Stop(place) => {
                self.signal(place, "STOP").await;
                sleep(fault.lasts).await;
                self.signal(place, "CONT").await;
            }
            Trouble::Hold(place) => {
                self.places[place].line.hold(true);
                sleep(fault.lasts).await;
                self.places[place].line.heal();
            }
            Trouble::Throttle(place, bytes_per_second) => {
                self.places[place].line.slow_down(bytes_per_second);
                sleep(fault.lasts).await;
                self.places[place].line.heal();
            }
            Trouble::Cut(place) => {
                self.places[place].line.cut();
                sleep(fault.lasts).await;
                self.places[place].line.heal();
            }
            Trouble::Freeze => {
                let redis = self.redis.lock().await;
                redis.as_ref().unwrap().signal("STOP");
                sleep(fault.lasts).await;
                redis.as_ref().unwrap().signal("CONT");
            }
            Trouble::Restart => {
                let mut redis = self.redis.lock().await;
                record.has_lost_data.store(true, Ordering::Relaxed);
                drop(redis.take());
                sleep(fault.lasts).await;
                let back = RedisServer::try_start(self.redis_address).await;
                *redis = Some(back.expect("its port is still free"));
            }
            Trouble::Flush => {
                let redis = self.redis.lock().await;
                record.has_lost_data.store(true, Ordering::Relaxed);
                redis.as_ref().unwrap().ask(&["FLUSHALL"]).await;
            }
        }
    }

    /// Who holds a room's slots, as the instance at this place sees it.
    pub async fn room(&self, place: usize, uid: &str) -> Value {
        self.places[place].relay.lock().await.as_ref().unwrap().room(uid).await
    }

    /// What each process holds, with its number.
    pub async fn holdings(&self) -> Vec<(usize, Holdings)> {
        let mut all = Vec::new();
        for place in &self.places {
            let relay = place.relay.lock().await;
            let relay = relay.as_ref().unwrap();
            let resident = relay.resident();
            let files = std::fs::read_dir(format!("/proc/{}/fd", relay.id())).unwrap().count();
            let number = place.process.lock().unwrap().unwrap().number;
            all.push((number, Holdings { resident, files }));
        }
        all
    }

    /// The sum of a metric over all instances.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let mut sum = 0.0;
        for place in &self.places {
            sum += place.relay.lock().await.as_ref().unwrap().metric(name, labels).await;
        }
        sum
    }

    /// Channels that are subscribed.
    pub async fn channels(&self) -> Vec<Value> {
        self.ask_redis(&["PUBSUB", "CHANNELS"]).await
    }

    /// What Redis knows.
    pub async fn keys(&self) -> Vec<Value> {
        self.ask_redis(&["KEYS", "*"]).await
    }

    /// How long a key lives in milliseconds; -1: for ever, -2: it is gone.
    pub async fn expires_in_ms(&self, key: &str) -> i64 {
        let redis = self.redis.lock().await;
        redis.as_ref().unwrap().ask(&["PTTL", key]).await.as_i64().unwrap()
    }

    async fn ask_redis(&self, question: &[&str]) -> Vec<Value> {
        let redis = self.redis.lock().await;
        redis.as_ref().unwrap().ask(question).await.as_array().cloned().unwrap()
    }

    /// Sends SIGTERM to all instances, and checks how they leave.
    pub async fn leave(&self, record: &Record) {
        let relays = join_all(self.places.iter().map(async |place| place.relay.lock().await.take())).await;
        join_all(relays.into_iter().flatten().map(async |relay| {
            relay.signal("TERM");
            leaves(relay, record).await;
        }))
        .await;
    }
}

/// After SIGTERM an instance ends in time, with 0.
async fn leaves(mut relay: Relay, record: &Record) {
    let signalled = Instant::now();
    let status = relay.exit(3 * LEAVES_WITHIN).await;
    let took = signalled.elapsed();
    if took > LEAVES_WITHIN {
        record.wrong(format!("an instance left after {took:?}"));
    }
    if !status.success() {
        record.wrong(format!("an instance ended with {status}"));
    }
    check_log(&relay, record);
}

fn check_log(relay: &Relay, record: &Record) {
    let log = relay.log();
    for line in log.lines().filter(|line| line.contains("ERROR") || line.contains("panicked")) {
        record.wrong(format!("in a log: {line}"));
    }
}
