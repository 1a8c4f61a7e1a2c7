//! Tokens: of all texts only the one that was signed is accepted, and only by rules that allow its algorithm.
#![no_main]

use duorelay::auth::fuzzing::Issuer;
use libfuzzer_sys::fuzz_target;

/// Keys whose private halves nobody has any more, and what each of them once signed.
const KEYS: &[u8] = include_bytes!("../keys/jwks.json");
const RS256: &str = include_str!("../keys/rs256.jwt");
const ES256: &str = include_str!("../keys/es256.jwt");

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let payload = |issuer: Issuer| issuer.payload("fuzz", KEYS, text).is_ok();
    assert_eq!(payload(Issuer::Firebase), text == RS256);
    assert_eq!(payload(Issuer::OpenId("https://issuer.example")), text == RS256 || text == ES256);
    if payload(Issuer::Emulator) {
        assert!(text.ends_with('.') && text.matches('.').count() == 2 && text.len() <= 16 * 1024);
    }
});
