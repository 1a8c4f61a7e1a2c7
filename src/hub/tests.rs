use uuid::Uuid;

use super::*;
use crate::relay::ids::ConnectionId;

fn hub(lease: Duration) -> Rc<Hub> {
    let settings = HubSettings {
        instance: InstanceId(Uuid::from_u128(1)),
        limits: ClientLimits {
            message_bytes: 65_536,
            messages_per_second: 0,
            queue_bytes: 1 << 20,
            bytes_per_second: 0,
        },
        features: Vec::new(),
        stun: Vec::new(),
        heartbeat: Duration::from_secs(25),
        lease,
        budget: Budget::new(1 << 30),
    };
    Hub::alone(settings, Arc::new(Metrics::default()))
}

async fn join(hub: &Rc<Hub>, uid: &str) -> Rc<Seat> {
    let joining = Joining {
        user: UserId::new(uid).unwrap(),
        device: Device::Desktop,
        client: None,
        attempt: None,
        protocol: Protocol::V1,
        label: uid.into(),
        expires_at: 0,
    };
    let seat = hub.join(joining, ConnectionId(Uuid::new_v4())).await.unwrap();
    assert!(seat.with_outbox(Outbox::pop).unwrap().bytes.starts_with(b"{\"type\":\"welcome\""));
    seat
}

#[tokio::test]
async fn what_all_receive_is_encoded_once() {
    let hub = hub(Duration::from_secs(45));
    let seats = [join(&hub, "ann").await, join(&hub, "bob").await];
    let before = Instant::now();
    hub.on_event(Event::Up(Users::All));
    let notices = seats.each_ref().map(|seat| seat.with_outbox(Outbox::pop).unwrap().bytes);
    assert_eq!(notices[0], r#"{"type":"backplane","state":"up"}"#);
    assert_eq!(notices[0].as_ptr(), notices[1].as_ptr(), "the same bytes");
    for seat in seats {
        assert!(seat.renew_at.get() <= before + Duration::from_secs(3), "renewed soon");
    }
}
