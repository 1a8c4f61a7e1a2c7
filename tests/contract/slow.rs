//! Section 6: what a request may bring. How long it may take stands in `src/edge/listen_tests.rs`.

use crate::support::{Config, Issuer, Token};

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let issuer = Issuer::start();
    let relay = Config::new(&issuer).start().await;
    let handshake = relay.handshake().bearer(&Token::firebase("ann").sign());
    handshake.clone().header("X-Large", &"x".repeat(16 * 1024)).open().await;
    let (_, refused) = handshake.header("X-Large", &"x".repeat(33 * 1024)).send().await;
    assert_eq!(refused.status, 431);
}
