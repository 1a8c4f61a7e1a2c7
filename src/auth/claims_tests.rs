use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::auth::firebase;
use crate::auth::testing::{EC, FORGED, NOW, PROJECT, RSA, both_keys, claims, encode, rsa_jwk};

const OPENID_ISSUER: &str = "https://issuer.example/";

fn firebase_rules() -> Rules {
    firebase::rules(PROJECT).unwrap()
}

fn openid_rules() -> Rules {
    Rules::openid(OPENID_ISSUER.into(), PROJECT.into()).unwrap()
}

fn verify(rules: &Rules, token: &str) -> Result<Identity, Refusal> {
    let keys = KeySet::parse(both_keys().as_bytes(), rules.algorithms()).unwrap();
    let token = SignedToken::parse(token, rules.algorithms())?;
    rules.identity(&token.payload(&keys)?, NOW)
}

fn openid_claims(mut changes: Value) -> Value {
    if changes.get("iss").is_none() {
        changes["iss"] = json!(OPENID_ISSUER);
    }
    claims(changes)
}

const HEADER: &str = r#"{"alg":"RS256","kid":"rsa-1","typ":"JWT"}"#;

#[test]
fn a_good_firebase_token_names_its_user() {
    let token = RSA.sign(&claims(json!({}))).unwrap();
    let identity = verify(&firebase_rules(), &token).unwrap();
    assert_eq!(
        identity,
        Identity {
            user: UserId::new("some-user").unwrap(),
            email: Email::new("someone@example.com"),
            expires_at: NOW + 3600,
            issued_at: NOW,
            auth_time: Some(NOW - 60),
        }
    );
    assert!(!format!("{identity:?}").contains("example.com"), "an e-mail address must not get into logs");
}

#[test]
fn each_broken_claim_has_its_refusal() {
    use Refusal::*;
    let table: Vec<(Value, Option<Refusal>)> = vec![
        (json!({}), None),
        // aud
        (json!({"aud": null}), Some(MalformedToken)),
        (json!({"aud": 7}), Some(MalformedToken)),
        (json!({"aud": {"aud": PROJECT}}), Some(MalformedToken)),
        (json!({"aud": "other"}), Some(WrongAudience)),
        (json!({"aud": ""}), Some(WrongAudience)),
        (json!({"aud": [PROJECT]}), Some(WrongAudience)),
        // iss
        (json!({"iss": null}), Some(MalformedToken)),
        (json!({"iss": 7}), Some(MalformedToken)),
        (json!({"iss": "https://securetoken.google.com/other"}), Some(WrongIssuer)),
        (json!({"iss": format!("https://securetoken.google.com/{PROJECT}/")}), Some(WrongIssuer)),
        (json!({"iss": format!("http://securetoken.google.com/{PROJECT}")}), Some(WrongIssuer)),
        (json!({"iss": "https://accounts.google.com"}), Some(WrongIssuer)),
        // sub
        (json!({"sub": null}), Some(MalformedToken)),
        (json!({"sub": 7}), Some(MalformedToken)),
        (json!({"sub": ""}), Some(MalformedToken)),
        (json!({"sub": "x".repeat(128)}), None),
        (json!({"sub": "ü".repeat(128)}), None),
        (json!({"sub": "x".repeat(129)}), Some(MalformedToken)),
        // exp: no leeway, and the second itself is too late
        (json!({"exp": null}), Some(MalformedToken)),
        (json!({"exp": (NOW + 3600).to_string()}), Some(MalformedToken)),
        (json!({"exp": NOW + 1}), None),
        (json!({"exp": NOW}), Some(TokenExpired)),
        (json!({"exp": NOW - 1}), Some(TokenExpired)),
        (json!({"exp": NOW as f64 + 0.9}), Some(TokenExpired)),
        (json!({"exp": NOW as f64 + 1.5}), None),
        (json!({"exp": 0}), Some(TokenExpired)),
        (json!({"exp": -1}), Some(TokenExpired)),
        (json!({"exp": -1e300}), Some(TokenExpired)),
        (json!({"exp": u64::MAX}), None),
        (json!({"exp": 1e300}), None),
        // iat
        (json!({"iat": null}), Some(MalformedToken)),
        (json!({"iat": "now"}), Some(MalformedToken)),
        (json!({"iat": NOW + 60}), None),
        (json!({"iat": NOW + 61}), Some(TokenNotYetValid)),
        (json!({"iat": u64::MAX}), Some(TokenNotYetValid)),
        (json!({"iat": 1e300}), Some(TokenNotYetValid)),
        (json!({"iat": NOW * 1000}), Some(TokenNotYetValid)),
        (json!({"iat": NOW as f64 - 0.5}), None),
        (json!({"iat": 0}), None),
        // auth_time
        (json!({"auth_time": null}), Some(MalformedToken)),
        (json!({"auth_time": true}), Some(MalformedToken)),
        (json!({"auth_time": NOW + 60}), None),
        (json!({"auth_time": NOW + 61}), Some(TokenNotYetValid)),
        // nbf, where an issuer writes one
        (json!({"nbf": NOW + 60}), None),
        (json!({"nbf": NOW + 61}), Some(TokenNotYetValid)),
        (json!({"nbf": "now"}), Some(MalformedToken)),
        // the e-mail address decides nothing
        (json!({"email": null}), None),
        (json!({"email": 7}), None),
        // the first broken rule wins
        (json!({"aud": "other", "iss": "x", "sub": "", "exp": 0, "iat": u64::MAX}), Some(WrongAudience)),
        (json!({"iss": "x", "sub": "", "exp": 0, "iat": u64::MAX}), Some(WrongIssuer)),
        (json!({"sub": "", "exp": 0, "iat": u64::MAX}), Some(MalformedToken)),
        (json!({"exp": 0, "iat": u64::MAX, "auth_time": null}), Some(TokenExpired)),
        (json!({"iat": u64::MAX, "auth_time": null}), Some(TokenNotYetValid)),
        (json!({"aud": "other", "exp": null}), Some(WrongAudience)),
    ];
    for (changes, refusal) in table {
        let payload = claims(changes.clone()).to_string();
        assert_eq!(firebase_rules().identity(payload.as_bytes(), NOW).err(), refusal, "{changes}");
    }
}

#[test]
fn other_issuers_may_list_audiences_and_leave_out_auth_time() {
    use Refusal::*;
    let table: Vec<(Value, Option<Refusal>)> = vec![
        (json!({}), None),
        (json!({"aud": [PROJECT]}), None),
        (json!({"aud": ["other", PROJECT]}), None),
        (json!({"aud": ["other"]}), Some(WrongAudience)),
        (json!({"aud": []}), Some(WrongAudience)),
        (json!({"aud": [PROJECT, 7]}), Some(MalformedToken)),
        (json!({"auth_time": null}), None),
        (json!({"auth_time": NOW + 61}), Some(TokenNotYetValid)),
        (json!({"auth_time": "now"}), Some(MalformedToken)),
        (json!({"iss": "https://issuer.example"}), Some(WrongIssuer)),
        (json!({"iat": null}), Some(MalformedToken)),
    ];
    for (changes, refusal) in table {
        let payload = openid_claims(changes.clone()).to_string();
        assert_eq!(openid_rules().identity(payload.as_bytes(), NOW).err(), refusal, "{changes}");
    }
}

#[test]
fn dates_stay_where_arithmetic_is_safe() {
    let payload = claims(json!({"exp": 1e300, "iat": -7.5, "auth_time": 0.5})).to_string();
    let identity = firebase_rules().identity(payload.as_bytes(), NOW).unwrap();
    assert_eq!((identity.expires_at, identity.issued_at, identity.auth_time), (MAX_DATE, 0, Some(0)));
}

#[test]
fn a_payload_that_is_not_one_object_is_malformed() {
    let twice = claims(json!({})).to_string().replacen('{', r#"{"sub":"somebody-else","#, 1);
    let escaped = claims(json!({})).to_string().replacen('{', r#"{"\u0073ub":"somebody-else","#, 1);
    let list = json!([
        PROJECT,
        format!("https://securetoken.google.com/{PROJECT}"),
        "u",
        NOW + 9,
        NOW,
        NOW,
        null,
        null
    ]);
    let deep = format!(r#"{{"aud":{}"#, "[".repeat(10_000));
    let cases: Vec<String> = vec![
        twice,
        escaped,
        list.to_string(),
        deep,
        String::new(),
        "null".into(),
        "{}x".into(),
        "{\"aud\":1e999}".into(),
    ];
    for payload in cases {
        let refused = firebase_rules().identity(payload.as_bytes(), NOW);
        assert_eq!(refused, Err(Refusal::MalformedToken), "{}", &payload[..payload.len().min(80)]);
    }
}

#[test]
fn an_address_that_would_break_a_line_is_left_out() {
    let payload = claims(json!({"email": "a@example.com\nMessage: forged"})).to_string();
    assert_eq!(firebase_rules().identity(payload.as_bytes(), NOW).unwrap().email, None);
}

#[test]
fn each_broken_header_has_its_refusal() {
    use Refusal::*;
    let table = [
        (HEADER, None),
        (r#"{"alg":"RS256","kid":"rsa-1","typ":7,"x":[{}]}"#, None),
        // alg comes first: an unsigned token has no kid, and is refused for being unsigned
        (r#"{"alg":"none"}"#, Some(BadSignature)),
        (r#"{"alg":"none","kid":"rsa-1"}"#, Some(BadSignature)),
        (r#"{"alg":"None","kid":"rsa-1"}"#, Some(BadSignature)),
        (r#"{"alg":"rs256","kid":"rsa-1"}"#, Some(BadSignature)),
        (r#"{"alg":"","kid":"rsa-1"}"#, Some(BadSignature)),
        (r#"{"alg":"HS256","kid":"rsa-1"}"#, Some(BadSignature)),
        (r#"{"alg":"RS512","kid":"rsa-1"}"#, Some(BadSignature)),
        (r#"{"alg":"PS256","kid":"rsa-1"}"#, Some(BadSignature)),
        (r#"{"alg":"ES256","kid":"ec-1"}"#, Some(BadSignature)),
        (r#"{"alg":"HS256","kid":7}"#, Some(BadSignature)),
        (r#"{"alg":"HS256","kid":"rsa-1","crit":["b64"]}"#, Some(BadSignature)),
        // no algorithm at all is no header
        (r#"{"kid":"rsa-1"}"#, Some(MalformedToken)),
        (r#"{"alg":null,"kid":"rsa-1"}"#, Some(MalformedToken)),
        (r#"{"alg":["RS256"],"kid":"rsa-1"}"#, Some(MalformedToken)),
        // kid
        (r#"{"alg":"RS256"}"#, Some(MalformedToken)),
        (r#"{"alg":"RS256","kid":null}"#, Some(MalformedToken)),
        (r#"{"alg":"RS256","kid":7}"#, Some(MalformedToken)),
        (r#"{"alg":"RS256","kid":["rsa-1"]}"#, Some(MalformedToken)),
        (r#"{"alg":"RS256","kid":""}"#, Some(UnknownKey)),
        (r#"{"alg":"RS256","kid":"RSA-1"}"#, Some(UnknownKey)),
        // crit
        (r#"{"alg":"RS256","kid":"rsa-1","crit":["exp"]}"#, Some(MalformedToken)),
        (r#"{"alg":"RS256","kid":"rsa-1","crit":[]}"#, Some(MalformedToken)),
        // twice
        (r#"{"alg":"none","alg":"RS256","kid":"rsa-1"}"#, Some(MalformedToken)),
        (r#"{"alg":"RS256","kid":"rsa-1","kid":"rsa-1"}"#, Some(MalformedToken)),
        // no object
        (r#"["RS256","rsa-1",null]"#, Some(MalformedToken)),
        (r#""RS256""#, Some(MalformedToken)),
        ("", Some(MalformedToken)),
        ("{", Some(MalformedToken)),
    ];
    for (header, refusal) in table {
        let token = RSA.sign_parts(header, &claims(json!({})).to_string()).unwrap();
        assert_eq!(verify(&firebase_rules(), &token).err(), refusal, "{header}");
    }
}

#[test]
fn the_signature_comes_before_every_claim() {
    let bad = claims(json!({"aud": "other", "exp": 0}));
    assert_eq!(verify(&firebase_rules(), &FORGED.sign(&bad).unwrap()), Err(Refusal::BadSignature));
    let token = FORGED.sign_parts(HEADER, "not json").unwrap();
    assert_eq!(verify(&firebase_rules(), &token), Err(Refusal::BadSignature));
    let token = RSA.sign_parts(HEADER, "not json").unwrap();
    assert_eq!(verify(&firebase_rules(), &token), Err(Refusal::MalformedToken));
}

#[test]
fn a_token_that_was_touched_is_refused() {
    use Refusal::*;
    let good = RSA.sign(&claims(json!({}))).unwrap();
    let parts: Vec<&str> = good.split('.').collect();
    let [header, payload, signature] = parts[..] else { panic!("{good}") };
    let other_payload = encode(claims(json!({"sub": "somebody-else"})).to_string());
    let last = if signature.ends_with('A') { 'B' } else { 'A' };
    let table = [
        (good.clone(), None),
        (format!("{header}.{other_payload}.{signature}"), Some(BadSignature)),
        (format!("{header}.{payload}."), Some(BadSignature)),
        (format!("{header}.{payload}.{signature}A"), Some(BadSignature)),
        (format!("{header}.{payload}.{signature}=="), Some(BadSignature)),
        (format!("{header}.{payload}.{}", &signature[..signature.len() - 1]), Some(BadSignature)),
        (format!("{header}.{payload}.{}{last}", &signature[..signature.len() - 1]), Some(BadSignature)),
        (format!("{header}.{payload}.!{}", &signature[1..]), Some(BadSignature)),
        (format!("{header}.!.{signature}"), Some(BadSignature)),
        (format!("{header}..{signature}"), Some(BadSignature)),
        (format!("{header}.{payload}"), Some(MalformedToken)),
        (format!("{good}."), Some(MalformedToken)),
        (format!("{good}.x.y"), Some(MalformedToken)),
        (format!(".{payload}.{signature}"), Some(MalformedToken)),
        (format!("{header}=.{payload}.{signature}"), Some(MalformedToken)),
        (format!(" {good}"), Some(MalformedToken)),
        (format!("Bearer {good}"), Some(MalformedToken)),
        (String::new(), Some(MalformedToken)),
        ("..".into(), Some(MalformedToken)),
    ];
    for (token, refusal) in table {
        assert_eq!(verify(&firebase_rules(), &token).err(), refusal, "{token}");
    }
}

#[test]
fn a_token_may_be_long_but_not_without_end() {
    let fits = RSA.sign(&claims(json!({"groups": "x".repeat(10_000)}))).unwrap();
    assert!(fits.len() < MAX_TOKEN_BYTES);
    assert!(verify(&firebase_rules(), &fits).is_ok());
    let too_long = RSA.sign(&claims(json!({"groups": "x".repeat(MAX_TOKEN_BYTES)}))).unwrap();
    assert_eq!(verify(&firebase_rules(), &too_long), Err(Refusal::MalformedToken));
}

#[test]
fn es256_is_for_other_issuers_and_a_key_keeps_to_its_algorithm() {
    use Refusal::*;
    let payload = openid_claims(json!({})).to_string();
    let es = |kid: &str| EC.sign_parts(&format!(r#"{{"alg":"ES256","kid":"{kid}"}}"#), &payload);
    let rs = |kid: &str| RSA.sign_parts(&format!(r#"{{"alg":"RS256","kid":"{kid}"}}"#), &payload).unwrap();
    assert!(verify(&openid_rules(), &es("ec-1")).is_ok());
    assert!(verify(&openid_rules(), &rs("rsa-1")).is_ok());
    assert_eq!(verify(&openid_rules(), &es("rsa-1")), Err(BadSignature));
    assert_eq!(verify(&openid_rules(), &rs("ec-1")), Err(BadSignature));
    assert_eq!(verify(&openid_rules(), &es("ec-2")), Err(UnknownKey));
    // Firebase signs with RS256 only: its key set does not even hold the other key.
    assert_eq!(verify(&firebase_rules(), &rs("ec-1")), Err(UnknownKey));
}

#[test]
fn the_public_key_is_no_hmac_secret() {
    let header = r#"{"alg":"HS256","kid":"rsa-1"}"#;
    let message = format!("{}.{}", encode(header), encode(openid_claims(json!({})).to_string()));
    let n = rsa_jwk(json!({}))["n"].as_str().map(str::to_owned).unwrap();
    let key = jsonwebtoken::EncodingKey::from_urlsafe_base64_secret(&format!("{n}==")).unwrap();
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
    assert_eq!(verify(&openid_rules(), &format!("{message}.{signature}")), Err(Refusal::BadSignature));
}

proptest! {
    #[test]
    fn no_text_panics_or_passes(text in any::<String>(), dots in "[A-Za-z0-9_=.-]{0,300}") {
        for token in [text, dots] {
            prop_assert!(verify(&firebase_rules(), &token).is_err());
            prop_assert!(verify(&openid_rules(), &token).is_err());
        }
    }

    #[test]
    fn no_parts_panic_or_pass(header in ".*", payload in ".*", signature in any::<Vec<u8>>()) {
        let token = format!("{}.{}.{}", encode(header), encode(payload), encode(signature));
        prop_assert!(verify(&openid_rules(), &token).is_err());
    }

    #[test]
    fn no_payload_panics(exp in any::<f64>(), iat in any::<i64>(), sub in any::<String>(), email in any::<String>()) {
        let changes = json!({"exp": exp, "iat": iat, "sub": sub, "email": email});
        let payload = claims(changes).to_string();
        if let Ok(identity) = firebase_rules().identity(payload.as_bytes(), NOW) {
            prop_assert!(identity.expires_at > NOW && identity.expires_at <= MAX_DATE);
        }
    }

    #[test]
    fn no_flipped_byte_passes(at in any::<prop::sample::Index>(), other in "[A-Za-z0-9_.-]") {
        let good = RSA.sign(&claims(json!({}))).unwrap();
        let at = at.index(good.len());
        prop_assume!(good[at..=at] != other);
        let token = format!("{}{other}{}", &good[..at], &good[at + 1..]);
        prop_assert!(verify(&firebase_rules(), &token).is_err());
    }
}
