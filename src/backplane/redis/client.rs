//! fred, set up for a live service: its defaults queue without bound, wait for ever, and lose messages.

use std::sync::Arc;
use std::time::Duration;

use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::interfaces::{ClientLike as _, KeysInterface as _};
use fred::socket2::TcpKeepalive;
use fred::types::config::{
    Config, ConnectionConfig, PerformanceConfig, Server, ServerConfig, TcpConfig, UnresponsiveConfig,
};
use fred::types::{Builder, SetOptions};
use tokio::time::timeout;

use super::access::{Access, RedisError};
use crate::backplane::CALL_LIMIT;
use crate::backplane::connectivity::Cause;

/// How long a connection attempt may take.
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(2);
/// A server that answers nothing for this long is gone.
const UNRESPONSIVE: Duration = Duration::from_secs(2);
/// Commands that may wait in one client.
const COMMANDS: usize = 8192;
/// Messages that may wait between fred's reader and ours, which never waits itself: fred's default of 32 loses
/// bursts.
const MESSAGES: usize = 8 * 1024;
/// The same for a client that is not subscribed: fred makes all its six queues of this length in advance, some
/// megabytes for a subscriber.
const NO_MESSAGES: usize = 32;

/// What every connection is made after.
#[derive(Clone)]
pub struct Template(Arc<Access>);

impl Template {
    /// Connections to what `access` names.
    #[must_use]
    pub fn new(access: Access) -> Self {
        Self(Arc::new(access))
    }

    /// True for a cluster.
    pub(super) fn is_cluster(&self) -> bool {
        self.0.config.server.is_clustered()
    }

    /// The number of the database. Pub/sub knows no databases, so names of channels contain it.
    pub(super) fn database(&self) -> u8 {
        self.0.config.database.unwrap_or(0)
    }

    /// How the log names where the URL comes from.
    pub(super) fn variable(&self) -> &'static str {
        self.0.variable()
    }

    /// True when the password may change while the process runs.
    pub(super) fn has_file(&self) -> bool {
        self.0.has_file()
    }

    /// A cluster's nodes that the URL names.
    pub(super) fn seeds(&self) -> Vec<Server> {
        self.0.config.server.hosts()
    }

    /// A client that connects once, with the user and the password as they are now, and ends at its first error: to one
    /// node of a cluster, or to the server that the URL names. `hears` says whether it is subscribed to much.
    ///
    /// # Errors
    /// When the file with the URL cannot be read, or fred does not accept it.
    pub(super) fn client(&self, node: Option<&Server>, hears: bool) -> Result<Client, Error> {
        let mut config: Config = self.0.config()?;
        if let Some(server) = node {
            config.server = ServerConfig::Centralized { server: server.clone() };
        }
        config.fail_fast = true;
        let capacity = if hears { MESSAGES } else { NO_MESSAGES };
        let mut builder = Builder::from_config(config);
        builder.set_connection_config(connection()).set_performance_config(PerformanceConfig {
            default_command_timeout: CALL_LIMIT,
            broadcast_channel_capacity: capacity,
            ..PerformanceConfig::default()
        });
        builder.build()
    }
}

fn connection() -> ConnectionConfig {
    ConnectionConfig {
        connection_timeout: CONNECT_LIMIT,
        internal_command_timeout: CONNECT_LIMIT,
        // A command that was sent when the connection broke may have been carried out: asking again is
        // decided where it is known to be harmless.
        max_command_attempts: 1,
        // Nor is it fred that follows a cluster's redirections: a MOVED publish could overtake another.
        max_redirections: 0,
        max_command_buffer_len: COMMANDS,
        reconnect_on_auth_error: true,
        // A node is asked whether it serves by the probe: one that does not yet is no reason to refuse the connection.
        disable_cluster_health_check: true,
        unresponsive: UnresponsiveConfig {
            max_timeout: Some(UNRESPONSIVE),
            interval: Duration::from_millis(500),
        },
        tcp: TcpConfig {
            nodelay: Some(true),
            keepalive: Some(TcpKeepalive::new().with_time(Duration::from_secs(10))),
            user_timeout: Some(Duration::from_secs(5)),
            ..TcpConfig::default()
        },
        ..ConnectionConfig::default()
    }
}

/// Lets a client go that was used once.
pub(super) async fn close(client: &Client) {
    // Best effort: its work is done.
    let _ = timeout(CALL_LIMIT, client.quit()).await;
}

/// Why something failed, and Redis's own words, fit for the log.
pub(super) fn cause_of(error: &Error) -> (Cause, String) {
    let words = error.details();
    // Redis's words begin with a code in capitals; everything else is what fred or the system says.
    let is_redis = words.trim_start_matches('-').split(' ').next().is_some_and(|code| {
        !code.is_empty() && code.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit())
    });
    let cause = match error.kind() {
        ErrorKind::Timeout => Cause::Silent,
        ErrorKind::IO if words.starts_with("Unresponsive") => Cause::Silent,
        ErrorKind::Parse | ErrorKind::Config => Cause::Other,
        _ if is_redis => Cause::of(words),
        _ => Cause::Unreachable,
    };
    (cause, printable(error.details()))
}

/// Words that the log may hold: no names of keys, which hold users, and no more than a line.
fn printable(words: &str) -> String {
    const LENGTH: usize = 200;
    // The system's errors come as Rust's `Os { code, kind, message }`, whose braces hide no user.
    let words = words.strip_prefix("Os {").and_then(|fields| fields.split('"').nth(1)).unwrap_or(words);
    let mut text = String::new();
    let mut is_hidden = false;
    for c in words.chars().take(LENGTH) {
        match c {
            '{' => {
                is_hidden = true;
                text.push('{');
            }
            '}' => {
                is_hidden = false;
                text.push('}');
            }
            _ if is_hidden => {}
            c if c.is_control() => text.push(' '),
            c => text.push(c),
        }
    }
    text
}

/// What the instances with this Redis agree on as `key`: the proposal of the first that asked.
///
/// # Errors
/// [`RedisError`] when Redis cannot be asked.
pub async fn agree(template: &Template, key: &str, proposal: String) -> Result<String, RedisError> {
    let away = |error: Error| RedisError::Away(printable(error.details()));
    let client = template.client(None, false).map_err(away)?;
    let asked = timeout(CONNECT_LIMIT + CALL_LIMIT, async {
        client.init().await?;
        let () = client.set(key, proposal, None, Some(SetOptions::NX), false).await?;
        client.get(key).await
    });
    let result = asked.await;
    close(&client).await;
    result.map_err(|_| RedisError::Away("no answer in time".to_owned()))?.map_err(away)
}

/// There is no connection to the node.
pub(super) fn unconnected() -> Error {
    Error::new(ErrorKind::Canceled, "no connection to Redis")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_holds_no_names_of_keys() {
        let words = "NOPERM No permissions to access the 'duo:{ann@example.com}:desktop' key\r\n";
        assert_eq!(printable(words), "NOPERM No permissions to access the 'duo:{}:desktop' key  ");
        assert!(printable(&"x".repeat(1000)).len() <= 200);
    }

    #[test]
    fn the_log_holds_the_systems_words() {
        let words = "Os { code: 111, kind: ConnectionRefused, message: \"Connection refused\" }";
        assert_eq!(printable(words), "Connection refused");
        assert_eq!(printable("Os {"), "Os {");
    }

    #[test]
    fn what_no_server_said_is_no_refusal() {
        let of = |kind, words: &'static str| cause_of(&Error::new(kind, words)).0;
        assert_eq!(of(ErrorKind::Timeout, "Request timed out."), Cause::Silent);
        assert_eq!(of(ErrorKind::IO, "Connection refused"), Cause::Unreachable);
        assert_eq!(of(ErrorKind::Sentinel, "Failed to connect to all sentinel nodes."), Cause::Unreachable);
        assert_eq!(of(ErrorKind::IO, "Unresponsive connection."), Cause::Silent);
        assert_eq!(of(ErrorKind::Unknown, "channel closed"), Cause::Unreachable);
        assert_eq!(of(ErrorKind::Canceled, "no connection to Redis"), Cause::Unreachable);
        assert_eq!(of(ErrorKind::Sentinel, "WRONGPASS invalid"), Cause::Password);
        assert_eq!(of(ErrorKind::Unknown, "-OOM command not allowed"), Cause::OutOfMemory);
        assert_eq!(of(ErrorKind::Unknown, "OOM command not allowed"), Cause::OutOfMemory);
    }
}
