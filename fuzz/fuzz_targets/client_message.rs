//! A v1 client's text message: what is accepted reaches the other device as it was written.
#![no_main]

use duorelay::relay::protocol::{ClientMessage, Sender, ServerMessage, compact_json, raw_json};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

fn value(json: &str) -> Option<Value> {
    serde_json::from_str(json).ok()
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let parsed = ClientMessage::parse(text);
    let again = match &parsed {
        Ok(ClientMessage::Send { data, id, ack }) => {
            let data: &str = data;
            // An envelope marks a wish for an `ack` by white space at its end.
            assert_eq!(data, data.trim_end_matches([' ', '\t', '\r', '\n']));
            let ack_field = if *ack { r#","ack":true"# } else { "" };
            let id_field = id.as_ref().map(|id| format!(r#","id":{}"#, json!(id))).unwrap_or_default();
            let message = ServerMessage::Message {
                from: Sender::Mobile,
                data: Some(raw_json(data)),
                text: None,
                id: id.as_deref(),
                ack: *ack,
            };
            let encoded = message.encode();
            let expected =
                format!(r#"{{"type":"message","from":"mobile","data":{data}{id_field}{ack_field}}}"#);
            assert_eq!(encoded, expected);
            let compact = compact_json(data);
            assert_eq!(value(&compact), value(data));
            assert!(compact.len() <= data.len() && compact_json(&compact) == compact);
            format!(r#"{{"data":{data},"type":"send"{id_field}{ack_field}}}"#)
        }
        Ok(ClientMessage::Ack { id }) => json!({"type": "ack", "id": id}).to_string(),
        Ok(ClientMessage::Signal { to, data, id }) => {
            let data: &str = data;
            let id_field = id.as_ref().map(|id| format!(r#","id":{}"#, json!(id))).unwrap_or_default();
            format!(r#"{{"type":"signal","to":"{to}","data":{data}{id_field}}}"#)
        }
        Ok(ClientMessage::Received { messages, time }) => {
            json!({"type": "received", "messages": messages, "time": time}).to_string()
        }
        Ok(ClientMessage::Reports { every_ms }) => {
            json!({"type": "reports", "every_ms": every_ms}).to_string()
        }
        Ok(ClientMessage::Ping { id }) => {
            let pong = ServerMessage::Pong { id: id.as_deref(), time: 7 }.encode();
            let pong: Value = serde_json::from_slice(&pong).unwrap();
            assert_eq!(pong.get("id").and_then(Value::as_str), id.as_deref());
            match id {
                Some(id) => json!({"type": "ping", "id": id}).to_string(),
                None => r#"{"type":"ping"}"#.to_owned(),
            }
        }
        Ok(ClientMessage::Auth { token }) => json!({"type": "auth", "token": **token}).to_string(),
        Err(error) => {
            let answer =
                ServerMessage::Error { code: error.code, detail: error.detail, id: error.id.as_deref() };
            let answer: Value = serde_json::from_slice(&answer.encode()).unwrap();
            assert_eq!(answer["code"], error.code);
            return;
        }
    };
    assert_eq!(ClientMessage::parse(&again), parsed);
});
