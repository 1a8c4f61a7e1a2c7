//! Whose tokens are accepted: decided once, before anything starts.

use std::time::Duration;

use secrecy::SecretString;

/// Everything that the verifier is built from.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Whose tokens are accepted.
    pub issuer: Issuer,
    /// Set when sessions are also checked for revocation.
    pub revocation: Option<Revocation>,
}

/// The issuer of the ID tokens.
#[derive(Debug, Clone)]
pub enum Issuer {
    /// Firebase Authentication, by the rules that Google publishes for third-party libraries
    /// (<https://firebase.google.com/docs/auth/admin/verify-id-tokens#verify_id_tokens_using_a_third-party_jwt_library>).
    Firebase {
        /// Audience, and the last part of the issuer.
        project_id: String,
        /// Where the keys come from instead of Google's endpoint.
        jwks_url: Option<String>,
    },
    /// The Firebase Auth emulator, whose tokens are not signed.
    Emulator {
        /// Audience, and the last part of the issuer.
        project_id: String,
        /// `HOST:PORT` of the emulator.
        host: String,
    },
    /// Any other OpenID Connect issuer that signs with RS256 or ES256.
    OpenId {
        /// `iss`, exactly.
        issuer: String,
        /// `aud`, or one of its values.
        audience: String,
        /// The issuer's JWK set (RFC 7517).
        jwks_url: String,
    },
}

impl Issuer {
    /// Tells apart whose tokens are accepted, in 32 hexadecimal digits. The emulator's users are not those of the project
    /// whose name it bears: anybody signs their tokens.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let parts = match self {
            Self::Firebase { project_id, .. } => ["firebase", project_id, ""],
            Self::Emulator { project_id, .. } => ["emulator", project_id, ""],
            Self::OpenId { issuer, audience, .. } => ["openid", issuer, audience],
        };
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, parts.join("\0").as_bytes());
        digest.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// How and how often it is asked whether a session was revoked.
#[derive(Debug, Clone)]
pub struct Revocation {
    /// Who knows.
    pub service: IdentityService,
    /// The pause between two checks of an open socket's session, give or take a fifth.
    pub pause: Duration,
}

/// Who knows whether a session was revoked.
#[derive(Debug, Clone)]
pub enum IdentityService {
    /// Google's Identity Toolkit, with these credentials.
    Google(Credentials),
    /// The emulator in [`Issuer::Emulator`], which asks for no credentials.
    Emulator,
}

/// What Google's identity service is asked with.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// A service account's key.
    ServiceAccount(ServiceAccount),
    /// The metadata server of Google's platforms, which speaks for the account of the machine, pod or service.
    Metadata {
        /// `HOST` or `HOST:PORT`
        host: String,
    },
    /// Workload identity federation: another platform says who this is.
    External(ExternalAccount),
}

/// The parts of an `external_account` file that are needed (<https://google.aip.dev/auth/4117>).
#[derive(Debug, Clone)]
pub struct ExternalAccount {
    /// `audience`
    pub audience: String,
    /// `subject_token_type`
    pub subject_token_type: String,
    /// `token_url`
    pub token_url: String,
    /// `service_account_impersonation_url`
    pub impersonation_url: Option<String>,
    /// `credential_source`
    pub subject: SubjectToken,
}

/// The token by which another platform says who this is.
#[derive(Debug, Clone)]
pub struct SubjectToken {
    /// Where it is.
    pub source: SubjectTokenSource,
    /// The field that holds it, where the source is JSON.
    pub field: Option<String>,
}

/// Where a subject token is.
#[derive(Debug, Clone)]
pub enum SubjectTokenSource {
    /// In a file, such as a projected token of Kubernetes.
    File(String),
    /// At a URL.
    Url {
        /// The URL.
        url: String,
        /// What the platform wants to see beside it.
        headers: Vec<(String, String)>,
    },
}

/// The parts of a service account's JSON file that are needed.
#[derive(Debug, Clone)]
pub struct ServiceAccount {
    /// `project_id`
    pub project_id: String,
    /// `client_email`
    pub client_email: String,
    /// `private_key`, PEM (PKCS #8)
    pub private_key: SecretString,
    /// `private_key_id`
    pub private_key_id: Option<String>,
    /// `token_uri`
    pub token_uri: String,
}
