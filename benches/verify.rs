//! What one sign-in costs: `cargo bench --bench verify`.

#![expect(clippy::expect_used, reason = "a benchmark that cannot start should say so")]

use std::sync::Arc;
use std::time::Duration;

use divan::Bencher;
use duorelay::auth::{Email, Verifier};
use duorelay::demo::identity::IdentityProvider;
use duorelay::relay::ids::UserId;

const NOW: u64 = 1_800_000_000;

fn main() {
    divan::main();
}

fn token() -> (Verifier, String) {
    let provider = IdentityProvider::generate().expect("a key");
    let user = UserId::new("3kQ8mUyZ6sVb1XnWcPq7RtLd2Af1").expect("a uid");
    let email = Email::new("someone@example.com");
    let token = provider.mint(&user, email.as_ref(), NOW, Duration::from_secs(3600)).expect("a token");
    (provider.verifier(Arc::default()).expect("a verifier"), token)
}

/// A good RS256 token of Firebase's shape with a 2048-bit key: header, signature, claims.
#[divan::bench]
fn good_token(bencher: Bencher) {
    let (verifier, token) = token();
    bencher.bench(|| futures_util::FutureExt::now_or_never(verifier.verify(&token, NOW)));
}

/// A token with a touched signature costs no more than a good one.
#[divan::bench]
fn forged_token(bencher: Bencher) {
    let (verifier, token) = token();
    let (message, signature) = token.rsplit_once('.').expect("a token");
    let reversed: String = signature.chars().skip(1).chain(['A']).collect();
    let token = format!("{message}.{reversed}");
    bencher.bench(|| futures_util::FutureExt::now_or_never(verifier.verify(&token, NOW)));
}

/// Text that is no token.
#[divan::bench]
fn garbage(bencher: Bencher) {
    let (verifier, token) = token();
    bencher.bench(|| futures_util::FutureExt::now_or_never(verifier.verify(&token[..token.len() / 2], NOW)));
}
