//! What defaults of settings depend on.

/// What is known of this machine, so that tests can choose it.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// Standard output is a terminal.
    pub terminal: bool,
    /// Cores that the process may use.
    pub cores: usize,
    /// Sockets can be bound to IPv6 addresses.
    pub ipv6: bool,
    /// It is Google's, and so has a metadata server.
    pub google: bool,
}

impl Machine {
    /// This machine. Kernels booted with `ipv6.disable=1`, some containers' hosts among them, refuse `[::]`.
    #[must_use]
    pub fn this() -> Self {
        use std::io::IsTerminal as _;
        Self {
            terminal: std::io::stdout().is_terminal(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            ipv6: std::net::UdpSocket::bind("[::]:0").is_ok(),
            google: is_googles(),
        }
    }
}

/// Cloud Run and App Engine say so by a variable, and a GKE node in its BIOS, as Google's own libraries look
/// (<https://cloud.google.com/compute/docs/instances/detect-compute-engine>). A plain virtual machine is not asked: whoever
/// wants its account sets `GCE_METADATA_HOST`.
fn is_googles() -> bool {
    let is_set = |name| std::env::var_os(name).is_some();
    let product = || std::fs::read_to_string("/sys/class/dmi/id/product_name").unwrap_or_default();
    is_set("K_SERVICE")
        || is_set("GAE_SERVICE")
        || (is_set("KUBERNETES_SERVICE_HOST") && product().starts_with("Google"))
}
