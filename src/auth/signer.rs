//! Signing: assertions for Google's token endpoint, and the demo's own ID tokens.

use std::fmt;

use aws_lc_rs::encoding::{AsDer as _, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use thiserror::Error;

/// The library gives no reasons.
#[derive(Debug, Error)]
#[error("the RSA key cannot be made, read, or used")]
pub struct SignError;

/// An RSA key that signs tokens with RS256.
pub(crate) struct Signer {
    pair: KeyPair,
    kid: Option<String>,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("kid", &self.kid).finish_non_exhaustive()
    }
}

impl Signer {
    /// A fresh 2048-bit key.
    pub(crate) fn generate(kid: String) -> Result<Self, SignError> {
        let pair = KeyPair::generate(KeySize::Rsa2048).map_err(|_| SignError)?;
        Ok(Self { pair, kid: Some(kid) })
    }

    /// The key in a PEM block `PRIVATE KEY` (PKCS #8, RFC 7468 section 10), as service account files hold it.
    pub(crate) fn from_pem(pem: &str, kid: Option<String>) -> Result<Self, SignError> {
        let (_, rest) = pem.split_once("-----BEGIN PRIVATE KEY-----").ok_or(SignError)?;
        let (base64, _) = rest.split_once("-----END PRIVATE KEY-----").ok_or(SignError)?;
        let base64: String = base64.split_ascii_whitespace().collect();
        let der = STANDARD.decode(base64).map_err(|_| SignError)?;
        let pair = KeyPair::from_pkcs8(&der).map_err(|_| SignError)?;
        Ok(Self { pair, kid })
    }

    /// The key as [`Self::from_pem`] reads it, with its base64 on one line.
    pub(crate) fn to_pem(&self) -> Result<String, SignError> {
        let der: Pkcs8V1Der<'_> = self.pair.as_der().map_err(|_| SignError)?;
        let base64 = STANDARD.encode(der.as_ref());
        Ok(format!("-----BEGIN PRIVATE KEY-----\n{base64}\n-----END PRIVATE KEY-----\n"))
    }

    /// A JWT of these claims (RFC 7519).
    pub(crate) fn sign(&self, claims: &Value) -> Result<String, SignError> {
        let mut header = json!({"alg": "RS256", "typ": "JWT"});
        if let Some(kid) = &self.kid {
            header["kid"] = json!(kid);
        }
        self.sign_parts(&header.to_string(), &claims.to_string())
    }

    /// A JWS in compact serialization (RFC 7515 section 7.1) of this header and payload.
    pub(super) fn sign_parts(&self, header: &str, payload: &str) -> Result<String, SignError> {
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message.as_bytes(), &mut signature)
            .map_err(|_| SignError)?;
        Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    /// The public half as a JWK set (RFC 7517).
    pub(crate) fn jwks_json(&self) -> String {
        let public = self.pair.public_key();
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        json!({"keys": [{
            "kty": "RSA",
            "use": "sig",
            "alg": "RS256",
            "kid": self.kid,
            "n": encode(public.modulus().big_endian_without_leading_zero()),
            "e": encode(public.exponent().big_endian_without_leading_zero()),
        }]})
        .to_string()
    }
}
