use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::relay::ids::{ConnectionId, Device, Generation, InstanceId, Member};
use crate::relay::parcel::PressureState;
use crate::relay::private::Private;

fn text(message: &ServerMessage<'_>) -> String {
    String::from_utf8(message.encode().to_vec()).unwrap()
}

const C: ConnectionId = ConnectionId(Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0001));
const I: InstanceId = InstanceId(Uuid::from_u128(2));
const G: Generation = Generation(9_007_199_254_740_991);

#[test]
fn every_server_message_has_these_bytes() {
    let limits = ClientLimits {
        message_bytes: 65536,
        messages_per_second: 240,
        queue_bytes: 1_048_576,
        bytes_per_second: 1_048_576,
    };
    let stun = [String::from("stun:stun.example.org")];
    let peer = Some(Member { connection: C, generation: Generation(7) });
    let welcome = |peer, features, tenant, stun| ServerMessage::Welcome {
        connection: C,
        device: Device::Desktop,
        generation: G,
        uid: "u\"1",
        peer,
        expires_at: 1_800_000_000,
        heartbeat_ms: 25_000,
        limits,
        instance: I,
        features,
        tenant,
        stun,
    };
    let c = "01900000-0000-7000-8000-000000000001";
    let table = [
        (
            welcome(None, &[], None, &[]),
            format!(
                r#"{{"type":"welcome","connection":"{c}","device":"desktop","generation":9007199254740991,"uid":"u\"1","peer":null,"expires_at":1800000000,"heartbeat_ms":25000,"limits":{{"message_bytes":65536,"messages_per_second":240,"queue_bytes":1048576,"bytes_per_second":1048576}},"instance":"00000000-0000-0000-0000-000000000002","features":[]}}"#
            ),
        ),
        (
            welcome(peer, &[Feature::Ack, Feature::Signal, Feature::Pressure], Some("t"), &stun),
            format!(
                r#"{{"type":"welcome","connection":"{c}","device":"desktop","generation":9007199254740991,"uid":"u\"1","peer":{{"connection":"{c}","generation":7}},"expires_at":1800000000,"heartbeat_ms":25000,"limits":{{"message_bytes":65536,"messages_per_second":240,"queue_bytes":1048576,"bytes_per_second":1048576}},"instance":"00000000-0000-0000-0000-000000000002","features":["ack","signal","pressure"],"tenant":"t","stun":["stun:stun.example.org"]}}"#
            ),
        ),
        (
            ServerMessage::Peer {
                device: Device::Mobile,
                state: PeerState::Disconnected,
                connection: C,
                generation: Generation(7),
            },
            format!(
                r#"{{"type":"peer","device":"mobile","state":"disconnected","connection":"{c}","generation":7}}"#
            ),
        ),
        (
            ServerMessage::Message {
                from: Sender::Mobile,
                data: Some(raw_json("{ \"b\":1e400 }")),
                text: None,
                id: Some("x"),
                ack: false,
            },
            r#"{"type":"message","from":"mobile","data":{ "b":1e400 },"id":"x"}"#.to_owned(),
        ),
        (
            ServerMessage::Message {
                from: Sender::Desktop,
                data: Some(raw_json("1")),
                text: None,
                id: Some("x"),
                ack: true,
            },
            r#"{"type":"message","from":"desktop","data":1,"id":"x","ack":true}"#.to_owned(),
        ),
        (ServerMessage::Acked { id: "x" }, r#"{"type":"acked","id":"x"}"#.to_owned()),
        (
            ServerMessage::Signal { from: C, data: raw_json("{}") },
            format!(r#"{{"type":"signal","from":"{c}","data":{{}}}}"#),
        ),
        (
            ServerMessage::Pressure { state: PressureState::High, connection: C },
            format!(r#"{{"type":"pressure","state":"high","connection":"{c}"}}"#),
        ),
        (
            ServerMessage::Message {
                from: Sender::Server,
                data: Some(raw_json("null")),
                text: None,
                id: None,
                ack: false,
            },
            r#"{"type":"message","from":"server","data":null}"#.to_owned(),
        ),
        (
            ServerMessage::Message {
                from: Sender::Desktop,
                data: None,
                text: Some("h\ni"),
                id: None,
                ack: false,
            },
            r#"{"type":"message","from":"desktop","text":"h\ni"}"#.to_owned(),
        ),
        (
            ServerMessage::Overwritten {
                by: Successor { connection: C, generation: Generation(8), same_client: true },
            },
            format!(
                r#"{{"type":"overwritten","by":{{"connection":"{c}","generation":8,"same_client":true}}}}"#
            ),
        ),
        (ServerMessage::Expiring { expires_at: 5 }, r#"{"type":"expiring","expires_at":5}"#.to_owned()),
        (
            ServerMessage::Authenticated { expires_at: 5 },
            r#"{"type":"authenticated","expires_at":5}"#.to_owned(),
        ),
        (
            ServerMessage::Backplane { state: BackplaneState::Down },
            r#"{"type":"backplane","state":"down"}"#.to_owned(),
        ),
        (
            ServerMessage::Reconnect { reason: ReconnectReason::Draining, in_ms: 100, deadline_ms: 900 },
            r#"{"type":"reconnect","reason":"draining","in_ms":100,"deadline_ms":900}"#.to_owned(),
        ),
        (
            ServerMessage::Reconnect { reason: ReconnectReason::Lifetime, in_ms: 0, deadline_ms: 1 },
            r#"{"type":"reconnect","reason":"lifetime","in_ms":0,"deadline_ms":1}"#.to_owned(),
        ),
        (ServerMessage::Pong { id: Some("p"), time: 12 }, r#"{"type":"pong","id":"p","time":12}"#.to_owned()),
        (ServerMessage::Pong { id: None, time: 12 }, r#"{"type":"pong","time":12}"#.to_owned()),
        (
            ServerMessage::Error { code: "peer_absent", detail: "d", id: Some("x") },
            r#"{"type":"error","code":"peer_absent","detail":"d","id":"x"}"#.to_owned(),
        ),
    ];
    for (message, bytes) in table {
        assert_eq!(text(&message), bytes);
    }
}

#[test]
fn client_messages_are_read_by_the_table() {
    use ClientMessage as M;
    let ok = [
        (r#"{"type":"send","data":{"a": 1}}"#, M::Send { data: r#"{"a": 1}"#.into(), id: None, ack: false }),
        (
            r#"{"id":"7","data":null,"type":"send"}"#,
            M::Send { data: "null".into(), id: Some("7".into()), ack: false },
        ),
        (r#"{"type":"send","data":1,"ack":false}"#, M::Send { data: "1".into(), id: None, ack: false }),
        (
            r#"{"type":"send","data":1,"ack":true,"id":"\u00e9"}"#,
            M::Send { data: "1".into(), id: Some("é".into()), ack: true },
        ),
        (
            r#"{"type":"send","data":1,"data":2,"to":7,"token":[]}"#,
            M::Send { data: "2".into(), id: None, ack: false },
        ),
        (r#"{"type":"ack","id":"a"}"#, M::Ack { id: "a".into() }),
        (
            r#"{"type":"signal","to":"01900000-0000-7000-8000-000000000001","data":[ 1]}"#,
            M::Signal { to: C, data: "[ 1]".into(), id: None },
        ),
        (r#"{"t\u0079pe":"ping"}"#, M::Ping { id: None }),
        (r#"{"type":"ping","id":"\u00e9"}"#, M::Ping { id: Some("é".into()) }),
        (r#" {"type":"auth","token":"t","more":[1]} "#, M::Auth { token: String::from("t").into() }),
    ];
    for (json, message) in ok {
        assert_eq!(M::parse(json).as_ref(), Ok(&message), "{json}");
    }
    let bad = [
        ("", "bad_json", None),
        ("[]", "bad_json", None),
        ("\"x\"", "bad_json", None),
        ("{\"type\":\"send\"", "bad_json", None),
        ("{} {}", "bad_json", None),
        ("{}", "bad_field", None),
        (r#"{"type":7,"id":"i"}"#, "bad_field", Some("i")),
        (r#"{"type":"dance","id":"i"}"#, "unknown_type", Some("i")),
        (r#"{"type":"send","id":"i"}"#, "bad_field", Some("i")),
        (r#"{"type":"send","data":1,"id":2}"#, "bad_field", None),
        (r#"{"type":"send","data":1,"id":null}"#, "bad_field", None),
        (r#"{"type":"ping","id":2}"#, "bad_field", None),
        (r#"{"type":"auth"}"#, "bad_field", None),
        (r#"{"type":"auth","token":null}"#, "bad_field", None),
        (r#"{"type":"send","data":1,"ack":true}"#, "bad_field", None),
        (r#"{"type":"send","data":1,"ack":true,"id":""}"#, "bad_field", Some("")),
        (r#"{"type":"send","data":1,"ack":1,"id":"i"}"#, "bad_field", Some("i")),
        (r#"{"type":"send","data":1,"ack":null,"id":"i"}"#, "bad_field", Some("i")),
        (r#"{"type":"ack"}"#, "bad_field", None),
        (r#"{"type":"ack","id":7}"#, "bad_field", None),
        (r#"{"type":"signal","data":1,"id":"i"}"#, "bad_field", Some("i")),
        (r#"{"type":"signal","to":"me","data":1}"#, "bad_field", None),
        (r#"{"type":"signal","to":"01900000-0000-7000-8000-000000000001"}"#, "bad_field", None),
    ];
    for (json, code, id) in bad {
        let error = M::parse(json).unwrap_err();
        assert_eq!((error.code, error.id.as_deref()), (code, id), "{json}");
    }
}

#[test]
fn ids_of_acks_and_data_of_signals_are_bounded() {
    let ack = |id: &str| {
        let send = format!(r#"{{"type":"send","data":1,"ack":true,"id":"{id}"}}"#);
        let ack = format!(r#"{{"type":"ack","id":"{id}"}}"#);
        (ClientMessage::parse(&send).is_ok(), ClientMessage::parse(&ack).is_ok())
    };
    assert_eq!(ack(&"é".repeat(64)), (true, true));
    assert_eq!(ack(&"a".repeat(65)), (false, false));
    let long = "a".repeat(65);
    assert!(ClientMessage::parse(&format!(r#"{{"type":"send","data":1,"id":"{long}"}}"#)).is_ok());
    let signal = |bytes: usize| {
        let data = "a".repeat(bytes - 2);
        ClientMessage::parse(&format!(r#"{{"type":"signal","to":"{C}","data":"{data}"}}"#)).is_ok()
    };
    assert!(signal(SIGNAL_BYTES) && !signal(SIGNAL_BYTES + 1));
}

#[test]
fn deep_nesting_is_passed_on_and_not_recursed_into() {
    let deep = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
    let json = format!(r#"{{"type":"send","data":{deep}}}"#);
    assert_eq!(
        ClientMessage::parse(&json),
        Ok(ClientMessage::Send { data: Private::new(&deep), id: None, ack: false })
    );
    assert_eq!(compact_json(&deep), deep);
}

#[test]
fn compact_json_strips_only_outside_strings() {
    let json = "{ \"b \\\" \\\\\" :\t1.50E+2,\r\n\"a\" : [ 1 , \" \" ] }";
    assert_eq!(compact_json(json), "{\"b \\\" \\\\\":1.50E+2,\"a\":[1,\" \"]}");
}

proptest! {
    #[test]
    fn no_text_panics_the_parser(text in ".*") {
        let _ = ClientMessage::parse(&text);
        let _ = compact_json(&text);
    }

    #[test]
    fn a_plain_received_means_what_json_says(messages in "-?[0-9]{0,21}", time in "-?[0-9]{0,12}(\\.[0-9]{0,3})?(e2)?") {
        let plain = format!(r#"{{"type":"received","messages":{messages},"time":{time}}}"#);
        let spaced = plain.replace("{", "{ ");
        prop_assert_eq!(ClientMessage::parse(&plain), ClientMessage::parse(&spaced));
    }

    #[test]
    fn compact_json_means_the_same(value in json()) {
        let pretty = serde_json::to_string_pretty(&value).unwrap();
        prop_assert_eq!(compact_json(&pretty), serde_json::to_string(&value).unwrap());
    }

    #[test]
    fn data_arrives_as_it_was_written(value in json()) {
        let pretty = serde_json::to_string_pretty(&value).unwrap();
        let json = format!("{{\"type\":\"send\",\"data\":{pretty}}}");
        let parsed = ClientMessage::parse(&json);
        prop_assert_eq!(parsed.as_ref(), Ok(&ClientMessage::Send { data: Private::new(&pretty), id: None, ack: false }));
        let message = ServerMessage::Message { from: Sender::Mobile, data: Some(raw_json(&pretty)), text: None, id: None, ack: false };
        let read: serde_json::Value = serde_json::from_slice(&message.encode()).unwrap();
        prop_assert_eq!(&read["data"], &value);
    }
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(serde_json::Value::from),
        any::<i64>().prop_map(serde_json::Value::from),
        ".*".prop_map(serde_json::Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(serde_json::Value::from),
            prop::collection::btree_map(".*", inner, 0..6)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}
