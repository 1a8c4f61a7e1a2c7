//! Fetches the public keys of Firebase Authentication's ID tokens.

use super::AuthError;
use super::claims::Rules;

/// Google's keys for Firebase ID tokens as a JWK set: the same keys as the X.509 map that the
/// Admin SDKs read, without the ASN.1.
pub(super) const JWKS_URL: &str =
    "https://www.googleapis.com/service_accounts/v1/jwk/securetoken@system.gserviceaccount.com";

/// The rules for one project's ID tokens
/// (<https://firebase.google.com/docs/auth/admin/verify-id-tokens#verify_id_tokens_using_a_third-party_jwt_library>).
pub(super) fn rules(project_id: &str) -> Result<Rules, AuthError> {
    if project_id.is_empty() {
        return Err(AuthError::Empty("FIREBASE_PROJECT_ID"));
    }
    Ok(Rules::firebase(issuer(project_id), project_id.to_owned()))
}

/// `iss` of one project's ID tokens.
pub(crate) fn issuer(project_id: &str) -> String {
    format!("https://securetoken.google.com/{project_id}")
}

/// A project's id, as a setting or a file names it.
pub(crate) fn project_id(text: &str) -> Result<String, String> {
    // Old projects are scoped by their owner's domain: `example.com:project`.
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.:".contains(c);
    if text.chars().all(plain) && !text.is_empty() {
        Ok(text.to_owned())
    } else {
        Err(format!("must be a project's id, such as my-project-1234 (not its name), but is {text:?}"))
    }
}
