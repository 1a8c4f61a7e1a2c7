//! `duorelay health`, which the image's health check runs beside the relay, with its environment.

use std::process::Command;

use crate::support::{Config, Issuer};

fn health(listen: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_duorelay"))
        .arg("health")
        .args(arguments)
        .env_clear()
        .env("DUORELAY_LISTEN", listen)
        // What only `serve` needs, or would complain about, is none of its business.
        .env("FIREBASE_PROJECT_ID", "NOT A PROJECT")
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[tokio::test]
async fn exit_code_distinguishes_live_from_ready_and_from_gone() {
    let issuer = Issuer::start();
    let relay =
        Config::new(&issuer).set("REDIS_URL", "redis://127.0.0.1:1").start_until("/healthz/live").await;
    let listen = relay.public.to_string();
    assert_eq!(health(&listen, &[]), (Some(0), String::new()));
    let (code, text) = health(&listen, &["--ready"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("/healthz/ready: HTTP/1.1 503"), "{text}");
    drop(relay);
    assert_eq!(health(&listen, &[]).0, Some(1));
}
