//! A whole instance with real sockets, and a page that holds up the worker that answers it.

use std::sync::{Mutex, PoisonError, mpsc as blocking};

use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::*;
use crate::auth::unix_now;
use crate::config::{Additions, Command as Launched, Machine};
use crate::relay::ids::UserId;

const LIMIT: Duration = Duration::from_secs(20);

/// A page of one address, `/stall`: its worker says its name, and then does nothing until it is released.
fn stalling() -> (Router, mpsc::UnboundedReceiver<String>, blocking::Sender<()>) {
    let (say, said) = mpsc::unbounded_channel();
    let (release, released) = blocking::channel();
    let released = Arc::new(Mutex::new(released));
    let stall = get(async move || {
        say.send(std::thread::current().name().unwrap().to_owned()).unwrap();
        let _ = released.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(LIMIT);
        "released"
    });
    (Router::new().route("/stall", stall), said, release)
}

async fn start(workers: usize, router: Router) -> (Running, SocketAddr) {
    let metrics = Arc::new(Metrics::default());
    let machine = Machine { terminal: false, cores: workers, ipv6: false, google: false };
    let settings = [
        ("FIREBASE_PROJECT_ID", "test"),
        ("FIREBASE_AUTH_EMULATOR_HOST", "127.0.0.1:1"),
        ("DUORELAY_LISTEN", "127.0.0.1:0"),
        ("DUORELAY_ADMIN_LISTEN", "127.0.0.1:0"),
    ];
    let settings = settings.map(|(name, value)| (name.into(), value.into()));
    let arguments = ["duorelay", "serve"].map(Into::into);
    let launch = config::load(arguments, settings, machine, Additions::default()).unwrap();
    let Launched::Serve(config) = launch.command else { panic!("it is another command") };
    let verifier = Verifier::start(config.auth.clone(), &metrics).unwrap();
    let (opened, open) = std::sync::mpsc::channel();
    let page = Page { router, on_listening: Box::new(move |address| opened.send(address).unwrap()) };
    let ports = Ports::bind(&config.instance).unwrap();
    let (running, _) = assemble(*config, verifier, metrics, Some(page), ports).await.unwrap();
    (running, open.recv().unwrap())
}

/// The head of the answer to this request; the connection stays open as long as the caller keeps it.
async fn ask(to: SocketAddr, request: String) -> (String, TcpStream) {
    let mut stream = TcpStream::connect(to).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    (String::from_utf8(head).unwrap(), stream)
}

fn get_of(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: relay\r\n\r\n")
}

fn handshake_of(uid: &str) -> String {
    let now = unix_now();
    let claims = format!(
        r#"{{"iss":"https://securetoken.google.com/test","aud":"test","sub":"{uid}","iat":{now},"auth_time":{now},"exp":{}}}"#,
        now + 600
    );
    let [header, claims] = [r#"{"alg":"none"}"#, &claims].map(|part| URL_SAFE_NO_PAD.encode(part));
    format!(
        "GET /ws HTTP/1.1\r\nhost: relay\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         sec-websocket-protocol: duorelay.v1, {header}.{claims}.\r\n\r\n"
    )
}

#[tokio::test]
async fn a_worker_that_stands_still_holds_up_its_own_users_alone() {
    const WORKERS: usize = 3;
    let (page, mut said, release) = stalling();
    let (running, address) = start(WORKERS, page).await;
    let stalled = tokio::spawn(ask(address, get_of("/stall")));
    let name = timeout(LIMIT, said.recv()).await.unwrap().unwrap();
    let number: usize = name.strip_prefix("worker-").unwrap().parse().unwrap();
    let stands = running.to_workers.seen_by(number);

    let users: Vec<_> = (0..60).map(|n| format!("user-{n}")).collect();
    let (waiting, served): (Vec<_>, Vec<_>) =
        users.iter().partition(|uid| stands.is_home_of(&UserId::new(uid).unwrap()));
    assert!(waiting.len() >= 5 && served.len() >= 20, "{waiting:?}");
    let waiting: Vec<_> =
        waiting.into_iter().map(|uid| tokio::spawn(ask(address, handshake_of(uid)))).collect();
    let mut open = Vec::new();
    for uid in served {
        let (head, stream) = timeout(LIMIT / 2, ask(address, handshake_of(uid))).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{uid}: {head}");
        open.push(stream);
        let (head, _) = timeout(LIMIT / 2, ask(address, get_of("/healthz/live"))).await.unwrap();
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    }
    assert!(!stalled.is_finished() && waiting.iter().all(|asking| !asking.is_finished()));

    release.send(()).unwrap();
    for asking in waiting {
        let (head, _) = timeout(LIMIT, asking).await.unwrap().unwrap();
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    }
    assert!(timeout(LIMIT, stalled).await.unwrap().unwrap().0.starts_with("HTTP/1.1 200 "));
    running.leave(Duration::ZERO, Duration::ZERO, &mut Signals::catch().unwrap()).await;
}
