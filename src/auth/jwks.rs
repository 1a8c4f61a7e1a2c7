//! A set of public keys (RFC 7517). What an endpoint answers is hostile input.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

/// More keys than any issuer publishes; a longer list is refused.
const MAX_KEYS: usize = 100;

/// Why an answer is no set of keys.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum KeySetError {
    /// Not an object with a list `keys`.
    #[error("it is not a JWK set")]
    NotASet,
    /// An absurd number of keys.
    #[error("it has more than {MAX_KEYS} keys")]
    TooMany,
    /// None of its keys can verify a signature that this issuer may make.
    #[error("none of its keys can be used")]
    NoneUsable,
}

/// An issuer's public keys, each with the one algorithm that it verifies.
#[derive(Debug)]
pub(super) struct KeySet(Vec<Key>);

#[derive(Debug)]
struct Key {
    kid: String,
    algorithm: Algorithm,
    key: DecodingKey,
}

#[derive(Deserialize)]
struct JwkSet {
    keys: Vec<Value>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: String,
    #[serde(rename = "use")]
    public_key_use: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    n: Option<String>,
    e: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl KeySet {
    /// The keys of a JWK set that verify one of these algorithms. Others are passed over, as RFC 7517 section
    /// 5 asks for. A set without a usable key is an error, so that it never replaces a good one.
    pub(super) fn parse(json: &[u8], allowed: &[Algorithm]) -> Result<Self, KeySetError> {
        let set: JwkSet = serde_json::from_slice(json).map_err(|_| KeySetError::NotASet)?;
        if set.keys.len() > MAX_KEYS {
            return Err(KeySetError::TooMany);
        }
        let keys: Vec<Key> = set
            .keys
            .into_iter()
            .filter_map(|jwk| Key::from_jwk(&serde_json::from_value(jwk).ok()?))
            .filter(|key| allowed.contains(&key.algorithm))
            .collect();
        if keys.is_empty() { Err(KeySetError::NoneUsable) } else { Ok(Self(keys)) }
    }

    /// Is there any key of this name?
    pub(super) fn contains(&self, kid: &str) -> bool {
        self.0.iter().any(|key| key.kid == kid)
    }

    /// The keys of this name and algorithm. One name can stand for several keys: RFC 7517 section 4.5
    /// only says that it should not.
    pub(super) fn with(&self, kid: &str, algorithm: Algorithm) -> impl Iterator<Item = &DecodingKey> {
        self.0.iter().filter(move |key| key.kid == kid && key.algorithm == algorithm).map(|key| &key.key)
    }
}

impl Key {
    /// The key, unless it is made for something else than verifying RS256 or ES256.
    fn from_jwk(jwk: &Jwk) -> Option<Self> {
        if jwk.public_key_use.as_deref().is_some_and(|used| used != "sig") {
            return None;
        }
        if jwk.key_ops.as_ref().is_some_and(|operations| !operations.iter().any(|op| op == "verify")) {
            return None;
        }
        let (name, algorithm, key) = match jwk.kty.as_str() {
            "RSA" => {
                let (n, e) = (bytes(jwk.n.as_ref()?)?, bytes(jwk.e.as_ref()?)?);
                // RFC 7518 section 3.3: 2048 bits or more; an absurd key would cost absurd time.
                let fits = (256..=1024).contains(&n.len()) && (1..=4).contains(&e.len());
                ("RS256", Algorithm::RS256, fits.then(|| DecodingKey::from_rsa_raw_components(&n, &e))?)
            }
            "EC" if jwk.crv.as_deref() == Some("P-256") => {
                let (x, y) = (jwk.x.as_ref()?, jwk.y.as_ref()?);
                // RFC 7518 section 6.2.1.2: the coordinates have the curve's full length.
                let fits = bytes(x)?.len() == 32 && bytes(y)?.len() == 32;
                ("ES256", Algorithm::ES256, fits.then(|| DecodingKey::from_ec_components(x, y).ok())??)
            }
            _ => return None,
        };
        let made_for_it = jwk.alg.as_deref().is_none_or(|alg| alg == name);
        made_for_it.then(|| Self { kid: jwk.kid.clone(), algorithm, key })
    }
}

fn bytes(base64url: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(base64url).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::auth::testing::{EC, rsa_jwk};

    const BOTH: &[Algorithm] = &[Algorithm::RS256, Algorithm::ES256];

    fn parse(keys: Vec<Value>, allowed: &[Algorithm]) -> Result<KeySet, KeySetError> {
        KeySet::parse(json!({"keys": keys}).to_string().as_bytes(), allowed)
    }

    #[test]
    fn a_key_for_another_purpose_is_passed_over() {
        let ec = |changes: Value| {
            let mut jwk = EC.jwk();
            jwk.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            jwk
        };
        let good = [
            rsa_jwk(json!({})),
            rsa_jwk(json!({"alg": null, "use": null})),
            rsa_jwk(json!({"key_ops": ["verify"], "x5c": ["x"], "unknown": {}})),
            EC.jwk(),
        ];
        for jwk in good {
            assert!(parse(vec![jwk.clone()], BOTH).is_ok(), "{jwk}");
        }
        let bad = [
            rsa_jwk(json!({"kty": "EC"})),
            rsa_jwk(json!({"kty": "oct", "k": "AAAA"})),
            rsa_jwk(json!({"kty": null})),
            rsa_jwk(json!({"alg": "RS512"})),
            rsa_jwk(json!({"alg": "PS256"})),
            rsa_jwk(json!({"alg": "HS256"})),
            rsa_jwk(json!({"alg": "ES256"})),
            rsa_jwk(json!({"use": "enc"})),
            rsa_jwk(json!({"key_ops": ["encrypt"]})),
            rsa_jwk(json!({"kid": null})),
            rsa_jwk(json!({"kid": 7})),
            rsa_jwk(json!({"n": null})),
            rsa_jwk(json!({"n": "!"})),
            rsa_jwk(json!({"n": "AQAB"})),
            rsa_jwk(json!({"n": "A".repeat(4000)})),
            rsa_jwk(json!({"e": ""})),
            rsa_jwk(json!({"e": "A".repeat(40)})),
            ec(json!({"crv": "P-384"})),
            ec(json!({"alg": "RS256"})),
            ec(json!({"x": "AAAA"})),
            ec(json!({"kty": "RSA"})),
            json!(7),
            json!(null),
        ];
        for jwk in bad {
            assert_eq!(parse(vec![jwk.clone()], BOTH).err(), Some(KeySetError::NoneUsable), "{jwk}");
            let beside = parse(vec![jwk.clone(), rsa_jwk(json!({"kid": "good"}))], BOTH).unwrap();
            assert!(beside.contains("good") && !beside.contains("rsa-1"), "{jwk}");
        }
        assert_eq!(parse(vec![EC.jwk()], &[Algorithm::RS256]).err(), Some(KeySetError::NoneUsable));
    }

    #[test]
    fn what_is_not_a_set_is_an_error() {
        for answer in ["", "{", "null", "[]", "{}", r#"{"keys":{}}"#, r#"{"keys":7}"#, "<html>", "\u{feff}{}"]
        {
            assert_eq!(KeySet::parse(answer.as_bytes(), BOTH).err(), Some(KeySetError::NotASet), "{answer}");
        }
        assert_eq!(KeySet::parse(&[0xff, 0xfe], BOTH).err(), Some(KeySetError::NotASet));
        assert_eq!(KeySet::parse(&b"[".repeat(100_000), BOTH).err(), Some(KeySetError::NotASet));
        assert_eq!(parse(vec![], BOTH).err(), Some(KeySetError::NoneUsable));
        assert_eq!(parse(vec![json!({}); 101], BOTH).err(), Some(KeySetError::TooMany));
    }

    #[test]
    fn one_name_may_stand_for_several_keys() {
        let mut ec = EC.jwk();
        ec["kid"] = json!("rsa-1");
        let keys = parse(vec![rsa_jwk(json!({})), ec, rsa_jwk(json!({}))], BOTH).unwrap();
        assert_eq!(keys.with("rsa-1", Algorithm::RS256).count(), 2);
        assert_eq!(keys.with("rsa-1", Algorithm::ES256).count(), 1);
    }
}
