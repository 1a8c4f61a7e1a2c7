//! What issuers and identity services answer: header lines, an empty line, a body.
#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use duorelay::auth::Identity;
use duorelay::auth::fuzzing::{Issuer, account, max_age};
use duorelay::relay::refusal::Refusal;
use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

static ANN: LazyLock<Identity> = LazyLock::new(|| {
    let payload =
        br#"{"aud":"fuzz","iss":"https://issuer.example","sub":"ann","exp":9,"iat":1,"auth_time":5}"#;
    Issuer::OpenId("https://issuer.example").identity("fuzz", payload, 2).unwrap()
});

fuzz_target!(|bytes: &[u8]| {
    let (head, body) = match bytes.windows(2).position(|window| window == b"\n\n") {
        Some(at) => (&bytes[..at], &bytes[at + 2..]),
        None => (&b""[..], bytes),
    };
    let mut headers = HeaderMap::new();
    for line in head.split(|byte| *byte == b'\n') {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let name = parts.next().and_then(|name| HeaderName::from_bytes(name).ok());
        let value = parts.next().and_then(|value| HeaderValue::from_bytes(value).ok());
        if let (Some(name), Some(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let age = max_age(&headers);
    assert!(Duration::from_secs(1) <= age && age <= Duration::from_secs(24 * 3600), "{age:?}");

    let has_keys = Issuer::Firebase.has_keys(body) || Issuer::OpenId("https://issuer.example").has_keys(body);
    let verdict = account(body, &ANN);
    // A string that nobody asked for may be no UTF-8 for the relay, and may not for this.
    let Ok(set) = serde_json::from_slice::<Value>(body) else { return };
    if has_keys {
        assert!((1..=100).contains(&set["keys"].as_array().unwrap().len()));
    }
    let ann = set["users"].as_array().and_then(|users| users.iter().find(|user| user["localId"] == "ann"));
    match verdict {
        Ok(()) => assert!(ann.is_some_and(|ann| ann["disabled"] != true), "nobody knows ann"),
        Err(Refusal::UserDisabled) => assert!(ann.is_none_or(|ann| ann["disabled"] == true)),
        Err(Refusal::TokenRevoked) => assert!(ann.is_some_and(|ann| !ann["validSince"].is_null())),
        Err(refusal) => assert_eq!(refusal, Refusal::KeysUnavailable),
    }
});
