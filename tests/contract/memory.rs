//! Section 6, as far as it goes: in a control group whose memory ends, nobody new comes in, and who is here goes on.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use crate::support::{Client, Config, Handshake, Issuer, LIMIT, Relay, Token};

const MIB: u64 = 1 << 20;
/// What the relay may use in all. A debug build takes some 30 MiB before anybody comes.
const MEMORY: u64 = 96 * MIB;
/// What one receiver that does not read may hold.
const QUEUE: u64 = MIB;

/// A control group of our own; removed when dropped.
struct Group(PathBuf);

impl Group {
    /// A group with so much memory; why there is none, where this process may not make one.
    fn new(bytes: u64) -> Result<Self, String> {
        let versions = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        let mut reasons = Vec::new();
        for (mount, limit) in versions {
            let group = Self(Path::new(mount).join(format!("duorelay-test-{}", std::process::id())));
            let made =
                fs::create_dir(&group.0).and_then(|()| fs::write(group.0.join(limit), bytes.to_string()));
            match made {
                Ok(()) => return Ok(group),
                Err(error) => reasons.push(format!("{mount}: {error}")),
            }
        }
        Err(reasons.join("; "))
    }

    /// How often the kernel has ended a process of the group; both versions write `oom_kill N`.
    fn kills(&self) -> u64 {
        let files = ["memory.oom_control", "memory.events"].map(|file| fs::read_to_string(self.0.join(file)));
        let text: String = files.into_iter().flatten().collect();
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.expect("a count of kills").parse().unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // It may never have been made.
        let _ = fs::remove_dir(&self.0);
    }
}

/// A desktop that reads nothing, and its mobile, which has sent it nearly as much as may wait for it; `None` when one of
/// them was not let in.
async fn stalled_pair(relay: &Relay, number: usize) -> Option<(Client, Client)> {
    let token = Token::firebase(&format!("stalled-{number}")).sign();
    let desktop = relay.handshake().offer(&["duorelay.v1", &token]).receive_buffer(4096);
    let mobile = relay.handshake().offer(&["duorelay.v1", &token]).device("mobile");
    let (desktop, mut mobile) = (enter(&desktop).await?, enter(&mobile).await?);
    mobile.expect_json("welcome").await;
    for _ in 0..QUEUE / 60_000 - 1 {
        mobile.send_binary(vec![0x80; 60_000]).await;
    }
    mobile.sync().await;
    Some((desktop, mobile))
}

async fn enter(handshake: &Handshake) -> Option<Client> {
    handshake.try_open().await.unwrap().inspect_err(|refusal| refusal.expect_refusal(503, "full")).ok()
}

#[tokio::test]
async fn near_the_memory_limit_nobody_new_comes_in_and_who_is_here_goes_on() {
    let group = match Group::new(MEMORY) {
        Ok(group) => group,
        Err(reason) => {
            // Past the capture of a test that passes: this has to be seen.
            let _ = writeln!(
                std::io::stderr(),
                "not run: the memory limit, because no control group can be made ({reason})"
            );
            return;
        }
    };
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).set("DUORELAY_QUEUE_BYTES", QUEUE).in_group(&group.0).start().await;
    let (mut desktop, mut mobile) = relay.v1_pair("ann").await;

    let mut stalled = Vec::new();
    let deadline = Instant::now() + LIMIT * 2;
    while let Some(pair) = stalled_pair(&relay, stalled.len()).await {
        stalled.push(pair);
        assert!((stalled.len() as u64) < MEMORY / QUEUE, "all memory was given away");
        assert!(Instant::now() < deadline, "after {} pairs", stalled.len());
    }
    eprintln!("full after {} pairs", stalled.len());
    assert!(stalled.len() > 10);
    assert!(relay.metric("duorelay_handshakes_total", &[r#"result="full""#]).await >= 1.0);
    assert_eq!(relay.metric("duorelay_memory_short", &[]).await, 1.0);

    // Who is here is served, and nobody is cut off.
    for number in 0..200_u32 {
        mobile.send_frame(0x80, &number.to_be_bytes()).await;
        assert_eq!(desktop.expect_binary().await[1..], number.to_be_bytes());
    }
    for (_, mobile) in &mut stalled {
        mobile.sync().await;
    }
    assert_eq!(group.kills(), 0);
    assert_eq!(relay.metric("duorelay_connections", &[]).await, (2 * stalled.len() + 2) as f64);

    // When they have gone, the allocator gives back what it keeps, over some seconds.
    drop(stalled);
    let deadline = Instant::now() + Duration::from_secs(40);
    let new = relay.handshake().bearer(&Token::firebase("new").sign());
    while new.send().await.1.status != 101 {
        assert!(Instant::now() < deadline, "memory did not come back");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(relay.metric("duorelay_memory_short", &[]).await, 0.0);
}
