//! A reliable message that was taken and is lost: its sender learns of it, by its id where it had one.

use serde_json::{Value, json};

use crate::fleet::{Fleet, notified, pair};
use crate::support::{Client, LIMIT, RedisServer};

/// Sends a message with an id and a frame. The errors about them, in the order of their arrival.
async fn errors_about_both(sender: &mut Client) -> [Value; 2] {
    sender.send_json(json!({"type": "send", "data": 1, "id": "m1"})).await;
    sender.send_frame(0x81, b"reliable").await;
    [notified(sender, LIMIT, "error").await, notified(sender, LIMIT, "error").await]
}

#[tokio::test]
async fn a_message_to_a_killed_instance_comes_back_as_an_error_with_its_id() {
    let redis = RedisServer::start().await;
    let mut fleet = Fleet::start(&redis.url()).await;
    let (mut desktop, _mobile) = pair("ann", &fleet.relays[0], &fleet.relays[1]).await;
    fleet.relays[1].signal("KILL");
    fleet.relays[1].exit(LIMIT).await;
    // Until Redis has read the end of the dead instance's connection, it counts as one that hears.
    while redis.ask(&["PUBSUB", "NUMSUB", "duo:{ann}:mobile"]).await[1] != 0 {}
    let [message, frame] = errors_about_both(&mut desktop).await;
    assert_eq!((&message["code"], &message["id"]), (&json!("peer_absent"), &json!("m1")), "{message}");
    assert_eq!((&frame["code"], &frame["id"]), (&json!("peer_absent"), &Value::Null), "{frame}");
}

#[tokio::test]
async fn a_message_while_redis_is_frozen_comes_back_as_an_error_with_its_id() {
    let redis = RedisServer::start().await;
    let fleet = Fleet::start(&redis.url()).await;
    let (mut desktop, _mobile) = pair("ann", &fleet.relays[0], &fleet.relays[1]).await;
    redis.signal("STOP");
    let [message, frame] = errors_about_both(&mut desktop).await;
    redis.signal("CONT");
    assert_eq!(
        (&message["code"], &message["id"]),
        (&json!("backplane_unavailable"), &json!("m1")),
        "{message}"
    );
    assert_eq!((&frame["code"], &frame["id"]), (&json!("backplane_unavailable"), &Value::Null), "{frame}");
}
