//! `duorelay demo`: https for phones, what it says in the terminal, and what its page may reach.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use futures_util::StreamExt as _;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::support::{Config, Issuer, LIMIT, Relay, free_address, request, within};

fn demo(arguments: &[&str]) -> Config {
    let config = Config::new(&Issuer::start()).without_command().arg("demo");
    arguments.iter().fold(config, |config, argument| config.arg(argument))
}

/// The only certificate that is believed: the one whose fingerprint the person compares.
#[derive(Debug)]
struct Pinned(String);

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let bytes: Vec<String> =
            digest(&SHA256, leaf).as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
        let print = bytes.join(":");
        if print == self.0 { Ok(ServerCertVerified::assertion()) } else { Err(rustls::Error::General(print)) }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let algorithms = provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

async fn tls(to: SocketAddr, fingerprint: &str) -> TlsStream<TcpStream> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned(fingerprint.to_owned())))
        .with_no_client_auth();
    let stream = TcpStream::connect(to).await.unwrap();
    TlsConnector::from(Arc::new(config)).connect(to.ip().into(), stream).await.unwrap()
}

/// The fingerprint that the demo shows.
async fn fingerprint_of(relay: &Relay) -> String {
    relay.wait_for_log("fingerprint").await;
    let log = relay.log();
    let print =
        |word: &str| word.len() == 95 && word.split(':').all(|byte| u8::from_str_radix(byte, 16).is_ok());
    let mut words = log.split(|c: char| !c.is_ascii_hexdigit() && c != ':');
    let found = words.find_map(|word| {
        let word = word.trim_matches(':');
        print(word).then(|| word.to_owned())
    });
    found.unwrap()
}

async fn token(relay: &Relay, user: &str) -> String {
    let headers = [("content-type", "application/json")];
    let body = json!({ "user": user }).to_string();
    let answer = request(relay.public, "POST", "/demo/token", &headers, body.as_bytes()).await;
    answer.unwrap().json()["token"].as_str().unwrap().to_owned()
}

/// A phone over wss and a desktop over ws are one room's two devices, on one port.
async fn expect_a_room_over_both(relay: &Relay) {
    let token = token(relay, "ada").await;
    let mut desktop = relay.handshake().offer(&["duorelay.v1", &token]).open_v1().await;
    let url = format!("wss://{}/ws?device=mobile", relay.public);
    let mut handshake = url.into_client_request().unwrap();
    let offer = format!("duorelay.v1, {token}").parse().unwrap();
    handshake.headers_mut().insert("sec-websocket-protocol", offer);
    let stream = tls(relay.public, &fingerprint_of(relay).await).await;
    let (mut mobile, _) = tokio_tungstenite::client_async(handshake, stream).await.unwrap();
    let welcome = within(LIMIT, "the welcome over TLS", mobile.next()).await.unwrap().unwrap();
    let welcome: Value = serde_json::from_str(welcome.to_text().unwrap()).unwrap();
    assert_eq!((&welcome["type"], &welcome["device"]), (&json!("welcome"), &json!("mobile")));
    assert_eq!(desktop.expect_json("peer").await["device"], "mobile");
    desktop.send_binary(&[0x80, 7]).await;
    let frame = within(LIMIT, "a frame over TLS", mobile.next()).await.unwrap().unwrap();
    assert_eq!(frame.into_data().as_ref(), [0x80, 7]);
}

#[tokio::test]
async fn with_tls_one_port_speaks_https_and_http_under_the_fingerprint_that_it_shows() {
    let relay = demo(&["--tls"]).start().await;
    expect_a_room_over_both(&relay).await;
    let log = relay.log();
    for words in ["nobody vouches for this certificate", "Your connection is not private", "mkcert"] {
        assert!(log.contains(words), "{words}: {log}");
    }
}

#[tokio::test]
async fn a_certificate_of_ones_own_is_served() {
    let directory = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (cert, key) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
    write_pem(&cert, "CERTIFICATE", made.cert.der());
    write_pem(&key, "PRIVATE KEY", &made.signing_key.serialize_der());
    let arguments = ["--tls-cert", cert.to_str().unwrap(), "--tls-key", key.to_str().unwrap()];
    let relay = demo(&arguments).start().await;
    let bytes: Vec<String> =
        digest(&SHA256, made.cert.der()).as_ref().iter().map(|byte| format!("{byte:02X}")).collect();
    assert_eq!(fingerprint_of(&relay).await, bytes.join(":"));
    expect_a_room_over_both(&relay).await;
}

/// RFC 7468: base64 in lines of 64 characters.
fn write_pem(path: &Path, label: &str, der: &[u8]) {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> =
        text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    let pem = format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"));
    std::fs::write(path, pem).unwrap();
}

#[tokio::test]
async fn a_client_that_never_says_what_it_speaks_holds_up_nobody() {
    let relay = demo(&["--tls"]).start().await;
    let silent = TcpStream::connect(relay.public).await.unwrap();
    expect_a_room_over_both(&relay).await;
    drop(silent);
}

#[tokio::test]
async fn open_is_said_once_it_listens() {
    let relay = demo(&[]).start().await;
    relay.wait_for_log("so no phone can reach it").await;
    let log = relay.log();
    let at = |words: &str| log.find(words).unwrap_or_else(|| panic!("{words:?} is not in {log}"));
    let open = format!("open http://localhost:{}", relay.public.port());
    assert!(at("duorelay listens") < at(&open), "{log}");
}

#[tokio::test]
async fn a_port_that_is_taken_is_named_and_nothing_is_to_be_opened() {
    let address = free_address();
    let taken = std::net::TcpListener::bind(address).unwrap();
    for arguments in [&[][..], &["--tls"]] {
        let mut relay = demo(arguments).set("DUORELAY_LISTEN", address).spawn();
        let status = relay.exit(LIMIT).await;
        assert_eq!(status.code(), Some(1));
        let log = relay.log();
        let says = format!("{address} is in use by another program, perhaps by another demo");
        assert!(log.contains(&says) && log.contains("--port"), "{log}");
        assert!(!log.contains("open http"), "{log}");
    }
    drop(taken);
}

#[tokio::test]
async fn the_page_reaches_its_relay_alone_and_only_the_tracker_the_cdn() {
    let relay = demo(&[]).start().await;
    let page = relay.get("/").await;
    let policy = page.header("content-security-policy").unwrap().to_owned();
    let address = relay.public;
    for part in [
        "default-src 'none'",
        "script-src 'self';",
        &format!("connect-src 'self' ws://{address} wss://{address};"),
    ] {
        assert!(policy.contains(part), "{part}: {policy}");
    }
    assert!(!policy.contains("https:"), "{policy}");
    let tracker = relay.get("/demo/tracker.js").await;
    let policy = tracker.header("content-security-policy").unwrap();
    let config = relay.get("/demo/config.json").await.json();
    assert_eq!(config["faces"]["here"], false);
    let base = config["faces"]["base"].as_str().unwrap();
    for file in config["faces"]["files"].as_object().unwrap().values() {
        let text = |field: &str| file[field].as_str().unwrap();
        assert!(policy.contains(&format!("{base}{}@{}/", text("package"), text("version"))), "{policy}");
        assert!(text("integrity").starts_with("sha384-"), "{file}");
    }
    assert!(!policy.contains("ws:") && !policy.contains("connect-src 'self'"), "{policy}");
    assert_eq!(relay.get("/demo/faces/anything").await.status, 404);
}

#[tokio::test]
async fn a_tracker_that_is_not_there_stops_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let mut relay = demo(&["--faces", directory.path().to_str().unwrap()]).spawn();
    assert_eq!(relay.exit(LIMIT).await.code(), Some(1));
    let log = relay.log();
    assert!(log.contains("--faces") && log.contains("npm install --ignore-scripts"), "{log}");
}
