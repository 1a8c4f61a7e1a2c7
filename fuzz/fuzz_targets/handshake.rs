//! A handshake's query (first line) and headers (the others), and the address that proxies tell.
#![no_main]

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use duorelay::edge::gate::Gate;
use duorelay::relay::handshake::read;
use duorelay::relay::ids::{ClientId, Device};
use duorelay::relay::protocol::{Protocol, V1};
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use libfuzzer_sys::fuzz_target;

static GATE: LazyLock<Arc<Gate>> = LazyLock::new(|| {
    Gate::new(None, None, vec!["10.0.0.0/8".parse().unwrap(), "::1/128".parse().unwrap()], None)
});

fn is_proxy(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if v4.octets()[0] == 10)
        || matches!(address, IpAddr::V6(v6) if v6.is_loopback())
}

fuzz_target!(|bytes: &[u8]| {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let query = String::from_utf8_lossy(lines.next().unwrap_or_default());
    let mut headers = HeaderMap::new();
    for line in lines {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let name = parts.next().and_then(|name| HeaderName::from_bytes(name).ok());
        let value = parts.next().and_then(|value| HeaderValue::from_bytes(value.trim_ascii()).ok());
        if let (Some(name), Some(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    // As it is: nearly always refused. Inside HTTP/2 it needs no upgrade, and gets further.
    let _ = read(&Method::GET, &query, &headers, false);
    headers.insert("sec-websocket-version", HeaderValue::from_static("13"));
    if let Ok(handshake) = read(&Method::CONNECT, &query, &headers, true) {
        let token = handshake.token.as_ref().map_or("", |token| token.as_str());
        assert!(token.trim() == token && (handshake.token.is_none() || !token.is_empty()));
        assert!(handshake.attempt.is_none() || handshake.client.is_some());
        assert!(handshake.client.is_none_or(|client| ClientId::new(client.as_str()).is_some()));
        // A protocol's name is none, even where it is what another header gives as the token.
        let offered = !token.is_empty()
            && !token.starts_with("duorelay.")
            && headers
                .get_all("sec-websocket-protocol")
                .iter()
                .any(|value| value.to_str().unwrap().split(',').any(|part| part.trim() == token));
        let selected = handshake.selected.as_ref().map(|value| value.to_str().unwrap());
        match handshake.protocol {
            Protocol::V1 => assert_eq!(selected, Some(V1)),
            Protocol::Classic if offered => assert_eq!(selected, Some(token)),
            Protocol::Classic => assert_eq!(selected, None),
        }
        if !query.contains("device") && !query.contains('%') {
            assert_eq!(handshake.device == Device::Desktop, offered);
        }
    }

    let outside: IpAddr = "192.0.2.1".parse().unwrap();
    assert_eq!(GATE.fuzz_client_address(outside, &headers), outside);
    let proxy: IpAddr = "10.0.0.1".parse().unwrap();
    let client = GATE.fuzz_client_address(proxy, &headers);
    // Whatever stands left of what a proxy wrote does not matter.
    let mut lied = headers.clone();
    lied.remove("x-forwarded-for");
    lied.append("x-forwarded-for", HeaderValue::from_static("203.0.113.9"));
    for value in headers.get_all("x-forwarded-for") {
        lied.append("x-forwarded-for", value.clone());
    }
    if !is_proxy(&client) {
        assert_eq!(GATE.fuzz_client_address(proxy, &lied), client);
    }
});
