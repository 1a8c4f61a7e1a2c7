//! Redis over TLS with a private CA and client certificates, as `DUORELAY_REDIS_CA`, `_CERT` and `_KEY` name them.

use std::fs;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::Value;
use tempfile::TempDir;

use crate::fleet::{pair, v1};
use crate::support::{Config, Issuer, RedisServer, Relay};

/// A directory of PEM files: two authorities, a server's certificate for 127.0.0.1 and a client's of the first one.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        let write = |name: &str, kind: &str, der: &[u8]| {
            let pem = format!("-----BEGIN {kind}-----\n{}\n-----END {kind}-----\n", STANDARD.encode(der));
            fs::write(files.path(name), pem).unwrap();
        };
        let authority = |name: &str| {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.distinguished_name.push(DnType::CommonName, name);
            CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
        };
        let (ours, another) = (authority("ours"), authority("another"));
        write("ca.pem", "CERTIFICATE", ours.der());
        write("another.pem", "CERTIFICATE", another.der());
        for (name, host) in [("server", "127.0.0.1"), ("client", "relay.example")] {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new([host.to_owned()]).unwrap();
            write(&format!("{name}.pem"), "CERTIFICATE", params.signed_by(&key, &ours).unwrap().der());
            write(&format!("{name}.key"), "PRIVATE KEY", &key.serialize_der());
        }
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// An instance whose variables name these files.
    fn config(&self, issuer: &Issuer, url: &str, files: [(&str, &str); 3]) -> Config {
        let config = Config::new(issuer).set("REDIS_URL", url).set("DUORELAY_LEASE_SECONDS", 3);
        let given = files.into_iter().filter(|(_, name)| !name.is_empty());
        given.fold(config, |config, (variable, name)| config.set(variable, self.path(name).display()))
    }
}

const CA: &str = "DUORELAY_REDIS_CA";
const CERT: &str = "DUORELAY_REDIS_CERT";
const KEY: &str = "DUORELAY_REDIS_KEY";

async fn start() -> (Files, RedisServer, String, Issuer) {
    let files = Files::new();
    let (server, tls) =
        RedisServer::start_tls(&files.path("server.pem"), &files.path("server.key"), &files.path("ca.pem"))
            .await;
    (files, server, format!("rediss://{tls}"), Issuer::start())
}

#[tokio::test]
async fn a_private_ca_and_a_client_certificate_join_instances() {
    let (files, _server, url, issuer) = start().await;
    let config = files.config(&issuer, &url, [(CA, "ca.pem"), (CERT, "client.pem"), (KEY, "client.key")]);
    let relays = [config.start().await, config.start().await];
    let (mut desktop, mut mobile) = pair("ann", &relays[0], &relays[1]).await;
    mobile.send_frame(0x80, b"over TLS").await;
    assert_eq!(desktop.expect_binary().await, b"\x80over TLS");
}

/// Lives, is never ready, and says why once.
async fn waits(relay: &Relay, words: &str) {
    relay.wait_for_log(words).await;
    // Further tries, each of which fails alike.
    relay.wait_for_metric("duorelay_backplane_trouble", &["unreachable"], 1.0).await;
    v1(relay, "ann", "desktop").refused().await.expect_refusal(503, "backplane_unavailable");
    assert_eq!(relay.get("/healthz/live").await.status, 200);
    assert_eq!(relay.get("/healthz/ready").await.status, 503);
    let log = relay.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let about: Vec<_> = lines.filter(|line| line["cause"] == "unreachable").collect();
    assert_eq!(about.len(), 1, "{log}");
}

#[tokio::test]
async fn another_ca_is_named_in_one_line() {
    let (files, _server, url, issuer) = start().await;
    let words = "no root of the system or of DUORELAY_REDIS_CA has signed Redis's certificate";
    for ca in ["another.pem", ""] {
        let config = files.config(&issuer, &url, [(CA, ca), (CERT, "client.pem"), (KEY, "client.key")]);
        waits(&config.start_until("/healthz/live").await, words).await;
    }
}

#[tokio::test]
async fn a_missing_client_certificate_is_named_in_one_line() {
    let (files, _server, url, issuer) = start().await;
    let config = files.config(&issuer, &url, [(CA, "ca.pem"), (CERT, ""), (KEY, "")]);
    waits(&config.start_until("/healthz/live").await, "Redis demands a client certificate").await;
}
