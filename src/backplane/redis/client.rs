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
use super::words::words;
use crate::backplane::CALL_LIMIT;

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

    /// True when the URL asks for TLS.
    pub(super) fn has_tls(&self) -> bool {
        self.0.config.tls.is_some()
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

    /// A client of one node of a cluster, or of the server that the URL names. It connects once, with the
    /// user and the password as they are now, and ends at its first error. `hears` says whether it is
    /// subscribed to much.
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

/// What the instances with this Redis agree on as `key`: the proposal of the first that asked.
///
/// # Errors
/// [`RedisError`] when Redis cannot be asked.
pub async fn agree(template: &Template, key: &str, proposal: String) -> Result<String, RedisError> {
    let away = |error: Error| RedisError::Away(words(&error));
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
