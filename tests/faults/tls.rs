//! Redis over TLS with a private CA and client certificates, as `DUORELAY_REDIS_CA`, `_CERT` and `_KEY` name them.

use std::fs;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde_json::Value;
use tempfile::TempDir;

use crate::fleet::{pair, v1};
use crate::support::{Config, Issuer, LIMIT, Proxy, RedisServer, Relay, within};

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
        // Not ours, which the server trusts.
        let foreign = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["relay.example".to_owned()]).unwrap();
        write("foreign.pem", "CERTIFICATE", params.signed_by(&foreign, &another).unwrap().der());
        write("foreign.key", "PRIVATE KEY", &foreign.serialize_der());
        write("ca.pem", "CERTIFICATE", ours.der());
        write("another.pem", "CERTIFICATE", another.der());
        for (name, host) in [
            ("server", "127.0.0.1"),
            ("elsewhere", "redis.example"),
            ("expired", "127.0.0.1"),
            ("client", "relay.example"),
        ] {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new([host.to_owned()]).unwrap();
            if name == "expired" {
                params.not_after = rcgen::date_time_ymd(2020, 1, 1);
            }
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
    start_as("server").await
}

/// A server with this certificate.
async fn start_as(name: &str) -> (Files, RedisServer, String, Issuer) {
    let files = Files::new();
    let [certificate, key] = ["pem", "key"].map(|kind| files.path(&format!("{name}.{kind}")));
    let (server, tls) = RedisServer::start_tls(&certificate, &key, &files.path("ca.pem")).await;
    (files, server, format!("rediss://{tls}"), Issuer::start())
}

const OURS: [(&str, &str); 3] = [(CA, "ca.pem"), (CERT, "client.pem"), (KEY, "client.key")];

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
async fn waits(relay: &Relay, cause: &str, words: &str) {
    relay.wait_for_log(words).await;
    // Further tries, each of which fails alike.
    relay.wait_for_metric("duorelay_backplane_trouble", &[cause], 1.0).await;
    v1(relay, "ann", "desktop").refused().await.expect_refusal(503, "backplane_unavailable");
    assert_eq!(relay.get("/healthz/live").await.status, 200);
    assert_eq!(relay.get("/healthz/ready").await.status, 503);
    let log = relay.log();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let about: Vec<_> = lines.filter(|line| line["cause"] == cause).collect();
    assert_eq!(about.len(), 1, "{log}");
}

/// Stops by itself, with one line that has these words and names the URL.
async fn stops(config: &Config, words: &str) {
    let mut relay = config.spawn();
    let status = relay.exit(LIMIT).await;
    let log = relay.log();
    assert_eq!(status.code(), Some(1), "{words}: {log}");
    let errors: Vec<_> = log.lines().filter(|line| line.contains("ERROR")).collect();
    assert_eq!(errors.len(), 1, "{log}");
    assert!(errors[0].contains(words) && errors[0].contains("REDIS_URL"), "{words}: {log}");
    assert!(!log.contains("this instance waits"), "{log}");
}

#[tokio::test]
async fn another_ca_is_a_mistake() {
    let (files, _server, url, issuer) = start().await;
    let words = "no root of the system or of DUORELAY_REDIS_CA has signed Redis's certificate";
    for ca in ["another.pem", ""] {
        let config = files.config(&issuer, &url, [(CA, ca), (CERT, "client.pem"), (KEY, "client.key")]);
        stops(&config, words).await;
    }
}

#[tokio::test]
async fn a_certificate_for_another_host_is_a_mistake() {
    let (files, _server, url, issuer) = start_as("elsewhere").await;
    stops(&files.config(&issuer, &url, OURS), "Redis's certificate names another host").await;
}

#[tokio::test]
async fn a_client_certificate_that_is_missing_or_not_trusted_is_a_mistake() {
    let (files, _server, url, issuer) = start().await;
    let config = files.config(&issuer, &url, [(CA, "ca.pem"), (CERT, ""), (KEY, "")]);
    stops(&config, "Redis demands a client certificate (DUORELAY_REDIS_CERT, DUORELAY_REDIS_KEY)").await;
    let config = files.config(&issuer, &url, [(CA, "ca.pem"), (CERT, "foreign.pem"), (KEY, "foreign.key")]);
    stops(&config, "Redis does not trust the client certificate (DUORELAY_REDIS_CERT)").await;
}

#[tokio::test]
async fn an_expired_certificate_is_waited_for() {
    let (files, _server, url, issuer) = start_as("expired").await;
    let config = files.config(&issuer, &url, OURS);
    waits(&config.start_until("/healthz/live").await, "unreachable", "Redis's certificate has expired").await;
}

#[tokio::test]
async fn a_handshake_that_is_cut_is_waited_for() {
    let (files, server, url, issuer) = start().await;
    let tls = url.strip_prefix("rediss://").unwrap().parse().unwrap();
    let proxy = Proxy::start(tls).await;
    proxy.cut();
    let url = format!("rediss://{}", proxy.address());
    let relay = files.config(&issuer, &url, OURS).start_until("/healthz/live").await;
    relay.wait_for_metric("duorelay_backplane_trouble", &["unreachable"], 1.0).await;
    assert_eq!(relay.get("/healthz/ready").await.status, 503);
    proxy.heal();
    let ready = async { while relay.get("/healthz/ready").await.status != 200 {} };
    within(LIMIT, "ready", ready).await;
    v1(&relay, "ann", "desktop").open_v1().await.sync().await;
    drop(server);
}

#[tokio::test]
async fn tls_on_one_side_alone_is_hinted_at() {
    let (files, server, url, issuer) = start().await;
    let plain = server.url().replace("redis://", "rediss://");
    let config = files.config(&issuer, &plain, OURS);
    let words = "no answer in time (REDIS_URL begins with rediss: perhaps this server speaks no TLS)";
    waits(&config.start_until("/healthz/live").await, "silent", words).await;
    let config = Config::new(&issuer).set("REDIS_URL", url.replace("rediss://", "redis://"));
    let words = "(REDIS_URL does not begin with rediss: perhaps this server speaks TLS alone)";
    waits(&config.start_until("/healthz/live").await, "unreachable", words).await;
}
