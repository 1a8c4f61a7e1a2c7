//! Claims: the verdict is that of the contract's rules, read off the parsed JSON once more.
#![no_main]

use duorelay::auth::fuzzing::Issuer;
use duorelay::relay::refusal::Refusal;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

const NOW: u64 = 1_800_000_000;
const ISSUER: &str = "https://issuer.example";

/// A date: a number, cut off below 0 and after the year 9999.
fn date(claim: &Value) -> Result<Option<u64>, Refusal> {
    match claim {
        Value::Null => Ok(None),
        Value::Number(number) => {
            Ok(Some(number.as_f64().unwrap().clamp(0.0, 253_402_300_799.0).trunc() as u64))
        }
        _ => Err(Refusal::MalformedToken),
    }
}

fn verdict(claims: &Value, firebase: bool) -> Result<(String, u64), Refusal> {
    use Refusal::*;
    if !claims.is_object() {
        return Err(MalformedToken);
    }
    let ours = match &claims["aud"] {
        Value::String(aud) => aud == "fuzz",
        Value::Array(list) if list.iter().all(Value::is_string) => {
            !firebase && list.iter().any(|aud| aud == "fuzz")
        }
        _ => return Err(MalformedToken),
    };
    let issuer = if firebase { "https://securetoken.google.com/fuzz" } else { ISSUER };
    match (ours, &claims["iss"]) {
        (false, _) => return Err(WrongAudience),
        (true, Value::String(iss)) if iss == issuer => {}
        (true, Value::String(_)) => return Err(WrongIssuer),
        _ => return Err(MalformedToken),
    }
    let sub = claims["sub"]
        .as_str()
        .filter(|sub| (1..=128).contains(&sub.chars().count()))
        .ok_or(MalformedToken)?;
    let exp = date(&claims["exp"])?.ok_or(MalformedToken)?;
    if exp <= NOW {
        return Err(TokenExpired);
    }
    for (name, needed) in [("iat", true), ("auth_time", firebase), ("nbf", false)] {
        match date(&claims[name])? {
            Some(date) if date > NOW + 60 => return Err(TokenNotYetValid),
            None if needed => return Err(MalformedToken),
            Some(_) | None => {}
        }
    }
    Ok((sub.to_owned(), exp))
}

fuzz_target!(|bytes: &[u8]| {
    for (issuer, firebase) in [(Issuer::Firebase, true), (Issuer::OpenId(ISSUER), false)] {
        let ours = issuer.identity("fuzz", bytes, NOW);
        let Ok(claims) = serde_json::from_slice::<Value>(bytes) else {
            // An unknown claim may hold what is no value, such as a number past all ranges.
            continue;
        };
        let expected = verdict(&claims, firebase);
        let ours = ours.map(|identity| (identity.user.uid().to_owned(), identity.expires_at));
        // A name that stands twice is malformed; the parsed JSON does not show it.
        if ours != Err(Refusal::MalformedToken) {
            assert_eq!(ours, expected);
        } else if expected.is_ok() {
            let text = String::from_utf8_lossy(bytes);
            let names = ["aud", "iss", "sub", "exp", "iat", "auth_time", "nbf", "email"];
            let twice = |name: &&str| text.matches(&format!("\"{name}\"")).count() > 1 || text.contains('\\');
            assert!(names.iter().any(twice), "malformed: {text}");
        }
    }
});
