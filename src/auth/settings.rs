//! The issuers of accepted tokens: decided once, before anything starts.

use std::time::Duration;

use secrecy::SecretString;

/// Everything that the verifier is built from.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The issuer of accepted tokens.
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
        /// What a token's `iss` must equal.
        issuer: String,
        /// `aud`, or one of its values.
        audience: String,
        /// The issuer's JWK set (RFC 7517).
        jwks_url: String,
    },
}

impl Issuer {
    /// 32 hexadecimal digits for each issuer and audience. The emulator's users are not those of the project
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
    /// The service to query.
    pub service: IdentityService,
    /// The pause between two checks of an open socket's session, give or take a fifth.
    pub pause: Duration,
}

/// The services that know whether a session was revoked.
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
        /// The server as `HOST` or `HOST:PORT`, without a scheme.
        host: String,
    },
    /// Workload identity federation: another platform says who this is.
    External(ExternalAccount),
}

/// The parts of an `external_account` file that are needed (<https://google.aip.dev/auth/4117>).
#[derive(Debug, Clone)]
pub struct ExternalAccount {
    /// The field `audience`: the pool and provider.
    pub audience: String,
    /// The field `subject_token_type`, a URN.
    pub subject_token_type: String,
    /// The field `token_url`: Google's STS.
    pub token_url: String,
    /// The field `service_account_impersonation_url`, where it is used.
    pub impersonation_url: Option<String>,
    /// The field `credential_source`, reduced to what is read.
    pub subject: SubjectToken,
}

/// The token by which another platform says who this is.
#[derive(Debug, Clone)]
pub struct SubjectToken {
    /// A file, or a URL of the platform.
    pub source: SubjectTokenSource,
    /// The field that holds it, where the source is JSON.
    pub field: Option<String>,
}

/// Where a subject token is.
#[derive(Debug, Clone)]
pub enum SubjectTokenSource {
    /// In a file, such as a projected token of Kubernetes.
    File(String),
    /// A URL of the platform, asked with GET.
    Url {
        /// Plain http is allowed: platforms use addresses of the machine.
        url: String,
        /// What the platform wants to see beside it.
        headers: Vec<(String, String)>,
    },
}

/// The parts of a service account's JSON file that are needed.
#[derive(Debug, Clone)]
pub struct ServiceAccount {
    /// The field `project_id` of the file.
    pub project_id: String,
    /// The field `client_email`: the JWT's `iss`.
    pub client_email: String,
    /// `private_key`, PEM (PKCS #8)
    pub private_key: SecretString,
    /// The field `private_key_id`: the JWT's `kid`.
    pub private_key_id: Option<String>,
    /// The field `token_uri`: the JWT's `aud`.
    pub token_uri: String,
}
