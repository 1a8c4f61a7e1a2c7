//! What `duorelay demo` has beside a relay's settings: flags alone. A variable that is meant for a relay changes no demo.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, value_parser};

/// The demo's own flags.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct DemoFlags {
    /// Speak https, too, with this certificate.
    pub(super) tls: Option<DemoTls>,
    /// Where the npm packages of the face tracker are; the page takes them from a CDN without.
    pub(super) faces: Option<PathBuf>,
}

/// Where the demo's certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DemoTls {
    /// The demo makes one for this machine's addresses.
    Made,
    /// The PEM files of `--tls-cert` and `--tls-key`.
    Files {
        /// The certificate, and those that vouch for it.
        certificate: PathBuf,
        /// The private key of the certificate.
        key: PathBuf,
    },
}

/// The flags that only the demo has, for [`crate::config::Additions`].
#[must_use]
pub fn flags() -> [Arg; 4] {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Additions, Command, Machine, Stop, load};

    fn given(arguments: &[&str]) -> Result<DemoFlags, Stop> {
        let machine = Machine { terminal: false, cores: 1, ipv6: false, google: false };
        let arguments = ["duorelay"].iter().chain(arguments).map(Into::into);
        let environment = [("DUORELAY_TLS", "true"), ("DUORELAY_FACES", "/x"), ("FIREBASE_PROJECT_ID", "p")];
        let environment = environment.map(|(name, value)| (name.into(), value.into()));
        let additions = Additions { demo: flags().into(), commands: Vec::new() };
        match load(arguments, environment, machine, additions)?.command {
            Command::Demo(_, given) => Ok(read(&given)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_demos_own_flags_have_no_variables() {
        assert_eq!(given(&["demo"]).unwrap(), DemoFlags::default());
        assert_eq!(given(&["demo", "--tls"]).unwrap().tls, Some(DemoTls::Made));
        let files = DemoTls::Files { certificate: "c.pem".into(), key: "k.pem".into() };
        let all = ["demo", "--tls", "--tls-cert=c.pem", "--tls-key", "k.pem", "--faces", "node_modules"];
        let expected = DemoFlags { tls: Some(files), faces: Some("node_modules".into()) };
        assert_eq!(given(&all).unwrap(), expected);
        for arguments in
            [["demo", "--tls-cert=c"], ["demo", "--tls-key=k"], ["serve", "--tls"], ["serve", "--faces=d"]]
        {
            assert!(matches!(given(&arguments), Err(Stop::CommandLine(_))), "{arguments:?}");
        }
    }
}
