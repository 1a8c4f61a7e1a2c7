//! Firebase Authentication's tokens.

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
        return Err(AuthError::Empty("the Firebase project id"));
    }
    Ok(Rules::firebase(issuer(project_id), project_id.to_owned()))
}

/// `iss` of one project's ID tokens.
pub(crate) fn issuer(project_id: &str) -> String {
    format!("https://securetoken.google.com/{project_id}")
}
