//! `duorelay demo`: one instance, a development identity provider, and a page that two devices open.
//! Several of them behind a balancer share a backplane, and then the provider's key.
//!
//! Nothing here can be reached from `duorelay serve`.

mod faces;
mod flags;
mod https;
pub mod identity;
mod page;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use clap::ArgMatches;
use tracing::{info, warn};

use self::faces::{Faces, FacesError};
pub use self::flags::flags;
use self::https::{Front, TlsError};
use self::identity::{IdentityProvider, PROJECT_ID, SignError};
use self::page::Demo;
use crate::auth::AuthError;
use crate::auth::settings::{Issuer, Settings};
use crate::config::{Config, Instance};
use crate::metrics::Metrics;
use crate::server::{self, Page, ServerError};

/// Why the demo cannot run.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The identity provider's key cannot be made.
    #[error("the demo's identity provider cannot start: {0}")]
    Sign(#[from] SignError),
    /// Its tokens cannot be verified.
    #[error("the demo's tokens cannot be verified: {0}")]
    Auth(#[from] AuthError),
    /// The certificate cannot be made or read.
    #[error("the demo cannot speak https: {0}")]
    Tls(#[from] TlsError),
    /// The face tracker's files are not there.
    #[error(transparent)]
    Faces(#[from] FacesError),
    /// Another program has a port.
    #[error(
        "{address} is in use by another program, perhaps by another demo: stop that one, or choose other ports with \
         --port and --admin-listen"
    )]
    PortTaken {
        /// The address of `--listen`, or its default.
        address: SocketAddr,
    },
    /// The instance cannot run.
    #[error(transparent)]
    Server(ServerError),
}

impl From<ServerError> for DemoError {
    fn from(error: ServerError) -> Self {
        match error {
            ServerError::Listen { address, source } if source.kind() == io::ErrorKind::AddrInUse => {
                Self::PortTaken { address }
            }
            error => Self::Server(error),
        }
    }
}

/// Serves the demo until it is interrupted; its own [`flags`] are among what was `given`.
///
/// # Errors
/// See [`DemoError`].
pub async fn run(mut instance: Instance, given: &ArgMatches) -> Result<(), DemoError> {
    let flags = flags::read(given);
    warn!("this is the demo: anybody who reaches it can sign in as anybody");
    let faces = Faces::read(flags.faces.as_deref())?;
    let address = instance.listen;
    let front = match &flags.tls {
        None => None,
        Some(source) => {
            let front = Front::bind(address, source, &addresses())?;
            // People come in by the front, which speaks both; the relay behind it is for this machine alone.
            instance.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            Some(front)
        }
    };
    // With others there is a balancer in front, and this instance's own address is of no use to a person.
    let reach = if instance.is_alone() { Reach::of(address, front.is_some()) } else { Reach::default() };
    let proposal = IdentityProvider::generate()?.to_text()?;
    let agreed = server::agree(&instance, "signing-key", proposal).await?;
    let provider = IdentityProvider::from_text(&agreed)?;
    let metrics = Arc::new(Metrics::default());
    let verifier = provider.verifier(Arc::clone(&metrics))?;
    let router = page::router(Arc::new(Demo { provider, faces, reach: reach.clone() }));
    let on_listening = Box::new(move |relay: SocketAddr| {
        for line in reach.lines() {
            info!("{line}");
        }
        if let Some(front) = front {
            info!("{}", front.advice);
            tokio::spawn(front.serve(relay));
        }
    });
    // The provider's verifier is the one that is used; the settings only name the project.
    let issuer = Issuer::Firebase { project_id: PROJECT_ID.to_owned(), jwks_url: None };
    let auth = Settings { issuer, revocation: None };
    let config = Config { instance, auth, enforce_expiry: true };
    server::serve(config, verifier, metrics, Some(Page { router, on_listening })).await?;
    Ok(())
}

/// Where people find the demo.
#[derive(Debug, Clone, Default)]
struct Reach {
    /// From this computer: a browser takes it for secure without https.
    here: Option<String>,
    /// From the same network, by http.
    lan_url: Option<String>,
    /// From the same network, by https.
    tls_url: Option<String>,
    /// It listens for this computer alone.
    alone: bool,
}

impl Reach {
    fn of(listen: SocketAddr, tls: bool) -> Self {
        let port = listen.port();
        let alone = listen.ip().is_loopback();
        // Bound to one address it is found there; bound to all, at the one that a phone reaches best.
        let address =
            if listen.ip().is_unspecified() { lan_address(&addresses()) } else { Some(listen.ip()) };
        let at = address.filter(|_| !alone).map(|address| SocketAddr::new(address, port));
        let local = listen.ip().is_unspecified() || alone;
        Self {
            here: local.then(|| format!("http://localhost:{port}")),
            lan_url: at.map(|at| format!("http://{at}")),
            tls_url: at.filter(|_| tls).map(|at| format!("https://{at}")),
            alone,
        }
    }

    /// What a person reads in the terminal.
    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(here) = &self.here {
            lines.push(format!("open {here}"));
        }
        match (&self.tls_url, &self.lan_url) {
            (Some(url), _) => lines.push(format!("on a phone in the same network: {url}")),
            (None, Some(url)) => {
                lines.push(format!("on a phone in the same network: {url}"));
                lines.push(
                    "browsers give camera and motion only to https pages: --tls makes it one".to_owned(),
                );
            }
            (None, None) if self.alone => {
                lines.push("it listens for this computer alone, so no phone can reach it".to_owned());
            }
            (None, None) if self.here.is_some() => lines
                .push("this computer has no address in a local network, so no phone can reach it".to_owned()),
            (None, None) => {}
        }
        lines
    }
}

/// This machine's addresses. Bridges of container engines are left out: no phone is on them.
fn addresses() -> Vec<IpAddr> {
    let is_bridge =
        |name: &str| ["docker", "br-", "veth", "virbr"].iter().any(|prefix| name.starts_with(prefix));
    // A machine that does not list them is one without a network.
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    interfaces.iter().filter(|interface| !is_bridge(&interface.name)).map(if_addrs::Interface::ip).collect()
}

/// The address at which a phone in the same network finds this machine: its first private IPv4 one.
fn lan_address(addresses: &[IpAddr]) -> Option<IpAddr> {
    addresses.iter().copied().find(|address| matches!(address, IpAddr::V4(v4) if v4.is_private()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(listen: &str, tls: bool) -> Reach {
        Reach::of(listen.parse().unwrap(), tls)
    }

    #[test]
    fn a_demo_for_this_computer_alone_says_so() {
        for tls in [false, true] {
            let reach = reach("127.0.0.1:3000", tls);
            assert_eq!((&reach.lan_url, &reach.tls_url), (&None, &None));
            let lines = reach.lines();
            assert_eq!(lines[0], "open http://localhost:3000");
            assert!(lines[1].contains("this computer alone"), "{lines:?}");
        }
    }

    #[test]
    fn a_demo_at_one_address_is_found_there() {
        let plain = reach("192.168.1.5:3000", false);
        assert_eq!(plain.lan_url.as_deref(), Some("http://192.168.1.5:3000"));
        assert_eq!((plain.tls_url.as_deref(), plain.here.as_deref()), (None, None));
        assert!(plain.lines()[1].contains("--tls"), "{:?}", plain.lines());
        let tls = reach("192.168.1.5:3000", true);
        assert_eq!(tls.tls_url.as_deref(), Some("https://192.168.1.5:3000"));
        assert_eq!(tls.lines(), ["on a phone in the same network: https://192.168.1.5:3000"]);
    }

    #[test]
    fn a_machine_without_a_network_says_so() {
        let here = Some("http://localhost:3000".to_owned());
        let lines = Reach { here, ..Reach::default() }.lines();
        assert!(lines[1].contains("no address in a local network"), "{lines:?}");
    }

    #[test]
    fn behind_a_balancer_nothing_is_said() {
        assert!(Reach::default().lines().is_empty());
    }

    #[test]
    fn a_phone_is_sent_to_the_first_private_address() {
        let addresses: Vec<IpAddr> =
            ["127.0.0.1", "::1", "203.0.113.9", "10.1.2.3", "192.168.0.2"].map(|a| a.parse().unwrap()).into();
        assert_eq!(lan_address(&addresses), Some("10.1.2.3".parse().unwrap()));
        assert_eq!(lan_address(&addresses[..3]), None);
    }
}
