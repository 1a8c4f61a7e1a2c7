//! The Firebase Auth emulator's tokens, which are not signed.
//!
//! A way of its own: only a verifier that was built for the emulator comes here, and it knows no keys.

use super::AuthError;
use super::claims::{Header, Parts, decode};
use crate::relay::refusal::Refusal;

/// The payload of an unsigned token: `alg` is `none` and the signature is empty (RFC 7519 section 6).
/// There is no `kid`.
pub(super) fn payload(token: &str) -> Result<Vec<u8>, Refusal> {
    let parts = Parts::split(token)?;
    if Header::parse(parts.header)?.alg != "none" || !parts.signature.is_empty() {
        return Err(Refusal::BadSignature);
    }
    decode(parts.payload)
}

/// `HOST:PORT`, as the Firebase command line writes it into `FIREBASE_AUTH_EMULATOR_HOST`.
pub(crate) fn is_host_and_port(text: &str) -> bool {
    let has_port =
        text.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok_and(|port| port > 0));
    has_port && !text.contains(['/', '@', '?', '#']) && reqwest::Url::parse(&format!("http://{text}")).is_ok()
}

pub(super) fn check_host(host: &str) -> Result<(), AuthError> {
    if is_host_and_port(host) { Ok(()) } else { Err(AuthError::EmulatorHost(host.to_owned())) }
}
