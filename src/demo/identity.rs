//! The demo's identity provider: signs anybody in, with a key that it makes itself at start, or that the
//! first of several demos made.
//!
//! Only a verifier that comes from [`IdentityProvider::verifier`] believes its tokens. No setting of the
//! server leads here: [`crate::auth::settings::Settings`] has no case for it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use uuid::Uuid;

pub use crate::auth::signer::SignError;
use crate::auth::signer::Signer;
use crate::auth::{AuthError, Email, Verifier, firebase_issuer};
use crate::metrics::Metrics;
use crate::relay::ids::UserId;

/// `aud` of the demo's tokens. Firebase's own tools treat project ids that start with `demo-` as unreal.
pub const PROJECT_ID: &str = "demo-duorelay";

/// Makes ID tokens of Firebase's shape.
#[derive(Debug)]
pub struct IdentityProvider {
    signer: Signer,
    key_id: String,
}

impl IdentityProvider {
    /// A provider with a fresh RSA key of 2048 bits; making it takes some tenths of a second of CPU.
    ///
    /// # Errors
    /// [`SignError`] when the key cannot be made.
    pub fn generate() -> Result<Self, SignError> {
        let key_id = Uuid::new_v4().to_string();
        Ok(Self { signer: Signer::generate(key_id.clone())?, key_id })
    }

    /// Everything that another instance needs to be the same provider: the key's id on a line, then the
    /// private key as PEM. For demos that share a backplane; it is worth nothing to anybody else.
    ///
    /// # Errors
    /// [`SignError`] when the library does not give the key.
    pub fn to_text(&self) -> Result<String, SignError> {
        Ok(format!("{}\n{}", self.key_id, self.signer.to_pem()?))
    }

    /// The provider whose [`Self::to_text`] this is.
    ///
    /// # Errors
    /// [`SignError`] when it is not one's.
    pub fn from_text(text: &str) -> Result<Self, SignError> {
        let (key_id, pem) = text.split_once('\n').ok_or(SignError)?;
        Ok(Self { signer: Signer::from_pem(pem, Some(key_id.to_owned()))?, key_id: key_id.to_owned() })
    }

    /// The public key as a JWK set (RFC 7517).
    #[must_use]
    pub fn jwks_json(&self) -> String {
        self.signer.jwks_json()
    }

    /// An ID token for this user, who signed in at `now` (Unix seconds).
    ///
    /// # Errors
    /// [`SignError`] when the library refuses to sign.
    pub fn mint(
        &self,
        user: &UserId,
        email: Option<&Email>,
        now: u64,
        lifetime: Duration,
    ) -> Result<String, SignError> {
        let identities = email.map_or_else(|| json!({}), |email| json!({"email": [email.as_str()]}));
        let mut claims = json!({
            "iss": firebase_issuer(PROJECT_ID),
            "aud": PROJECT_ID,
            "auth_time": now,
            "user_id": user.uid(),
            "sub": user.uid(),
            "iat": now,
            "exp": now.saturating_add(lifetime.as_secs()),
            "firebase": {"identities": identities, "sign_in_provider": "custom"},
        });
        if let Some(email) = email {
            claims["email"] = json!(email.as_str());
            claims["email_verified"] = json!(false);
        }
        self.signer.sign(&claims)
    }

    /// A verifier that believes this provider and nobody else.
    ///
    /// # Errors
    /// [`AuthError`] should the key not be usable.
    pub fn verifier(&self, metrics: Arc<Metrics>) -> Result<Verifier, AuthError> {
        Verifier::with_keys(PROJECT_ID, &self.jwks_json(), metrics)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::refusal::Refusal;

    const NOW: u64 = 1_800_000_000;

    fn user() -> UserId {
        UserId::new("demo-user").unwrap()
    }

    #[tokio::test]
    async fn its_own_verifier_believes_its_tokens_until_they_expire() {
        let provider = IdentityProvider::generate().unwrap();
        let verifier = provider.verifier(Arc::default()).unwrap();
        let email = Email::new("someone@example.com");
        let token = provider.mint(&user(), email.as_ref(), NOW, Duration::from_secs(3600)).unwrap();
        let identity = verifier.verify(&token, NOW).await.unwrap();
        assert_eq!(identity.user, user());
        assert_eq!(identity.email, email);
        assert_eq!(identity.expires_at, NOW + 3600);
        assert_eq!(identity.auth_time, Some(NOW));
        assert_eq!(verifier.verify(&token, NOW + 3600).await, Err(Refusal::TokenExpired));
        let token = provider.mint(&user(), None, NOW, Duration::from_secs(1)).unwrap();
        assert_eq!(verifier.verify(&token, NOW).await.unwrap().email, None);
    }

    #[tokio::test]
    async fn a_provider_made_from_its_text_is_the_same() {
        let provider = IdentityProvider::generate().unwrap();
        let copy = IdentityProvider::from_text(&provider.to_text().unwrap()).unwrap();
        for (signer, judge) in [(&provider, &copy), (&copy, &provider)] {
            let token = signer.mint(&user(), None, NOW, Duration::from_secs(60)).unwrap();
            let identity = judge.verifier(Arc::default()).unwrap().verify(&token, NOW).await.unwrap();
            assert_eq!(identity.user, user());
        }
        assert!(IdentityProvider::from_text("").is_err());
        assert!(IdentityProvider::from_text("id\nno key").is_err());
    }

    #[tokio::test]
    async fn another_providers_verifier_does_not_believe_them() {
        let provider = IdentityProvider::generate().unwrap();
        let other = IdentityProvider::generate().unwrap().verifier(Arc::default()).unwrap();
        let token = provider.mint(&user(), None, NOW, Duration::from_secs(3600)).unwrap();
        assert_eq!(other.verify(&token, NOW).await, Err(Refusal::UnknownKey));
    }
}
