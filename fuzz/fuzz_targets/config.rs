//! Settings: lines NAME=VALUE as the environment. Whatever is wrong, no secret is shown.
#![no_main]

use std::ffi::OsString;

use duorelay::config::{Additions, Machine, load};
use libfuzzer_sys::fuzz_target;

const MACHINE: Machine = Machine { terminal: false, cores: 2, ipv6: true, google: false };
/// Stands inside of each secret, and nowhere else.
const MARK: &str = "hunter2";

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    if text.contains(MARK) {
        return;
    }
    let environment = text.lines().filter_map(|line| line.split_once('=')).filter_map(|(name, value)| {
        if name == "REDIS_URL"
            && let Err(error) =
                duorelay::backplane::redis::config(&value.replacen('@', &format!(":{MARK}@"), 1))
        {
            assert!(!error.to_string().contains(MARK), "a password is shown: {error}");
        }
        let value = match name {
            // Names a file, which may be any file of this machine.
            "GOOGLE_APPLICATION_CREDENTIALS" => return None,
            // After the user's name, or where there is none, at the end.
            "REDIS_URL" => {
                let at = value.find('@').unwrap_or(value.len());
                format!("{}:{MARK}{}", &value[..at], &value[at..])
            }
            "DUORELAY_ADMIN_TOKEN" => format!("{value}{MARK}"),
            _ => value.to_owned(),
        };
        Some((OsString::from(name), OsString::from(value)))
    });
    let arguments = ["duorelay", "serve"].map(OsString::from);
    let said = match load(arguments, environment, MACHINE, Additions::default()) {
        Ok(launch) => {
            format!("{launch:?}{:?}", launch.notices.iter().map(ToString::to_string).collect::<Vec<_>>())
        }
        Err(stop) => format!("{stop}{stop:?}"),
    };
    assert!(!said.contains(MARK), "a secret is shown: {said}");
});
