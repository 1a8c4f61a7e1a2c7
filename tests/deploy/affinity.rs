//! `AFFINITY=user` of docker-compose.yml: HAProxy sends both devices of a user to one relay.

use std::collections::BTreeMap;

use futures_util::future::join_all;

use crate::support::{Client, Config, HaProxy, Handshake, Issuer, RedisServer, Relay, Token};

struct Place {
    balancer: HaProxy,
    relays: Vec<Relay>,
    _redis: RedisServer,
    _issuer: Issuer,
}

impl Place {
    async fn start(affinity: &str) -> Self {
        let (issuer, redis) = (Issuer::start(), RedisServer::start().await);
        let balancer = HaProxy::start(3, affinity).await;
        let start = async |address| {
            let config = Config::new(&issuer).set("REDIS_URL", redis.url()).set("DUORELAY_LISTEN", address);
            config.start().await
        };
        let relays = join_all(balancer.relays.iter().map(start)).await;
        balancer.wait_for(3).await;
        Self { balancer, relays, _redis: redis, _issuer: issuer }
    }

    fn handshake(&self) -> Handshake {
        Handshake::new(self.balancer.address)
    }

    async fn frames(&self, path: &str) -> f64 {
        let label = format!("path=\"{path}\"");
        let labels = [label.as_str()];
        let counts = self.relays.iter().map(|relay| relay.metric("duorelay_frames_total", &labels));
        join_all(counts).await.into_iter().sum()
    }
}

fn instance(client: &Client) -> String {
    client.welcome["instance"].as_str().unwrap().to_owned()
}

/// A user's desktop and mobile, each with its token in another place; what is sent arrives.
async fn pair(place: &Place, number: usize) -> [Client; 2] {
    let token = Token::firebase(&format!("user-{number} {{ä}}")).sign();
    let desktop = match number % 2 {
        0 => place.handshake().offer(&["duorelay.v1", &token]),
        _ => place.handshake().offer(&[&token, "duorelay.v1"]),
    };
    let mobile = place.handshake().offer(&["duorelay.v1"]);
    let mobile = match number % 2 {
        0 => mobile.header("clientid", &token),
        _ => mobile.bearer(&token),
    };
    let mut desktop = desktop.open_v1().await;
    let mut mobile = mobile.open_v1().await;
    desktop.expect_json("peer").await;
    mobile.send_frame(0x80, b"here").await;
    assert_eq!(desktop.expect_binary().await, b"\x80here");
    [desktop, mobile]
}

#[tokio::test]
async fn both_devices_of_a_user_meet_on_one_relay_and_redis_carries_no_frame() {
    let place = Place::start("user").await;
    let mut open = Vec::new();
    let mut users: BTreeMap<String, usize> = BTreeMap::new();
    for number in 0..60 {
        let [desktop, mobile] = pair(&place, number).await;
        assert_eq!(instance(&desktop), instance(&mobile), "user {number} of {users:?}");
        *users.entry(instance(&desktop)).or_default() += 1;
        open.push([desktop, mobile]);
    }
    assert_eq!((place.frames("local").await, place.frames("backplane").await), (60.0, 0.0));
    // Chance spreads users: each relay has some of them.
    assert!(users.len() == 3 && users.values().all(|users| *users >= 8), "{users:?}");

    // Classic clients send their tokens in the same places.
    let token = Token::firebase("classic").sign();
    let mut desktop = place.handshake().offer(&[&token]).open().await;
    let mut mobile = place.handshake().header("clientid", &token).open().await;
    mobile.send_text("hello").await;
    for client in [&mut desktop, &mut mobile] {
        assert!(client.expect_text().await.contains("Message: hello"));
    }
    assert_eq!(place.frames("backplane").await, 0.0);

    // Without a user there is no hint: the relay refuses.
    place.handshake().refused().await.expect_refusal(400, "missing_token");
    place.handshake().bearer("no.token.at-all").refused().await.expect_refusal(403, "malformed_token");
}

#[tokio::test]
async fn without_affinity_sockets_go_to_the_least_loaded() {
    let place = Place::start("").await;
    let mut open = Vec::new();
    let mut sockets: BTreeMap<String, usize> = BTreeMap::new();
    for number in 0..15 {
        let pair = pair(&place, number).await;
        for client in &pair {
            *sockets.entry(instance(client)).or_default() += 1;
        }
        open.push(pair);
    }
    assert_eq!(sockets.values().collect::<Vec<_>>(), [&10, &10, &10]);
    assert!(place.frames("backplane").await > 0.0);
}
