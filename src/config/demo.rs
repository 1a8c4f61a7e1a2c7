//! What `duorelay demo` has beside a relay's settings: flags alone. A variable that is meant for a relay changes no demo.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, value_parser};

/// The demo's own flags.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DemoFlags {
    /// Speak https, too, with this certificate.
    pub tls: Option<DemoTls>,
    /// Where the npm packages of the face tracker are; the page takes them from a CDN without.
    pub faces: Option<PathBuf>,
}

/// Where the demo's certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DemoTls {
    /// The demo makes one for this machine's addresses.
    Made,
    /// PEM files.
    Files {
        /// The certificate, and those that vouch for it.
        certificate: PathBuf,
        /// Its private key.
        key: PathBuf,
    },
}

pub(super) fn flags() -> [Arg; 4] {
    let flag =
        |name: &'static str, help| Arg::new(name).long(name).help(help).help_heading("The demo's page");
    let path = |name: &'static str, value_name: &'static str, help| {
        flag(name, help).value_name(value_name).value_parser(value_parser!(PathBuf))
    };
    [
        flag("tls", "Speak https as well, with a certificate for this machine's addresses")
            .action(ArgAction::SetTrue),
        path("tls-cert", "FILE", "Speak https with this certificate (PEM), such as mkcert's")
            .requires("tls-key"),
        path("tls-key", "FILE", "Its private key (PEM)").requires("tls-cert"),
        path("faces", "DIR", "Serve the face tracker from this node_modules [default: the page asks a CDN]"),
    ]
}

pub(super) fn read(given: &ArgMatches) -> DemoFlags {
    let path = |name| given.get_one::<PathBuf>(name).cloned();
    let tls = match (path("tls-cert"), path("tls-key")) {
        (Some(certificate), Some(key)) => Some(DemoTls::Files { certificate, key }),
        _ => given.get_flag("tls").then_some(DemoTls::Made),
    };
    DemoFlags { tls, faces: path("faces") }
}
