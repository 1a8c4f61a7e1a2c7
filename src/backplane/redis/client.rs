//! fred, set up for a live service: its defaults queue without bound, wait for ever, and lose messages.

use std::time::Duration;

use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::interfaces::{ClientLike as _, KeysInterface as _};
use fred::socket2::TcpKeepalive;
use fred::types::config::{
    ClusterDiscoveryPolicy, Config, ConnectionConfig, PerformanceConfig, ReconnectPolicy, ServerConfig,
    TcpConfig, UnresponsiveConfig,
};
use fred::types::{Builder, RespVersion, SetOptions};
use tracing::warn;

use crate::backplane::CALL_LIMIT;

/// How long a connection attempt may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(2);
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

/// Why the backplane cannot be used at all: no retry will help.
#[derive(Debug, thiserror::Error)]
pub enum RedisError {
    /// The URL is not one.
    #[error("REDIS_URL is not usable: {0}")]
    Url(String),
    /// The server refuses us.
    #[error("Redis refuses the connection (user, password or permissions in REDIS_URL): {0}")]
    Refused(String),
    /// There is no agreement without it.
    #[error("Redis cannot be asked what others have chosen: {0}")]
    Away(String),
}

/// What a URL asks for.
///
/// # Errors
/// [`RedisError::Url`]
pub fn config(url: &str) -> Result<Config, RedisError> {
    let mut config = Config::from_url(url).map_err(|error| {
        // fred quotes the part that it does not understand, which may hold a password.
        let what = error.details().split(": ").next().unwrap_or_default();
        RedisError::Url(what.to_owned())
    })?;
    // RESP3: a subscribed connection still takes PING and SSUBSCRIBE.
    config.version = RespVersion::RESP3;
    config.fail_fast = false;
    if let ServerConfig::Clustered { policy, .. } = &mut config.server {
        // Any node that is known can tell of a failover: the one in the URL may be the one that failed.
        *policy = ClusterDiscoveryPolicy::UseCache;
    }
    Ok(config)
}

fn builder(config: &Config) -> Builder {
    let mut builder = Builder::from_config(config.clone());
    builder
        .set_connection_config(ConnectionConfig {
            connection_timeout: CONNECT_LIMIT,
            internal_command_timeout: CONNECT_LIMIT,
            // A command that was sent when the connection broke may have been carried out: asking again is
            // decided where it is known to be harmless.
            max_command_attempts: 1,
            // Nor is it fred that follows a cluster's redirections: after an ASK it takes the next answer on the
            // connection for that to its ASKING, whatever is under way, and a MOVED publish could overtake another.
            max_redirections: 0,
            max_command_buffer_len: COMMANDS,
            reconnect_on_auth_error: true,
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
        })
        .set_performance_config(PerformanceConfig {
            default_command_timeout: CALL_LIMIT,
            broadcast_channel_capacity: NO_MESSAGES,
            ..PerformanceConfig::default()
        });
    builder
}

/// What a worker's clients are made after.
#[derive(Clone)]
pub struct Template {
    client: Client,
    commands_only: Client,
}

impl Template {
    /// A worker's clients, for commands and for what is subscribed. Both are one connection where Redis is one server:
    /// what is published, claimed and subscribed then has one order, and what comes back comes in one read. On a
    /// cluster they are two, because fred takes the answers of other commands for that to an SSUBSCRIBE.
    pub(super) fn clients(&self) -> (Client, Client) {
        let subscriber = self.client.clone_new();
        let commands =
            if subscriber.is_clustered() { self.commands_only.clone_new() } else { subscriber.clone() };
        (commands, subscriber)
    }
}

/// Clients that reconnect for ever once they are connected; commands meanwhile end by their time limit.
///
/// # Errors
/// [`RedisError::Url`] when fred does not accept the configuration.
pub fn template(config: &Config) -> Result<Template, RedisError> {
    let build = |messages| {
        let mut builder = builder(config);
        let mut policy = ReconnectPolicy::new_exponential(0, 50, 1000, 2);
        policy.set_jitter(100);
        builder.with_performance_config(|performance| performance.broadcast_channel_capacity = messages);
        let client = builder.set_policy(policy).build();
        client.map_err(|error| RedisError::Url(error.details().to_owned()))
    };
    Ok(Template { client: build(MESSAGES)?, commands_only: build(NO_MESSAGES)? })
}

/// Connects once. A server that is not there (yet) is no error: an instance starts without Redis and waits.
///
/// # Errors
/// [`RedisError`] when the server refuses us, which no waiting changes.
pub async fn check(config: &Config) -> Result<(), RedisError> {
    let config = Config { fail_fast: true, ..config.clone() };
    let client = builder(&config).build().map_err(|error| RedisError::Url(error.details().to_owned()))?;
    let connected = tokio::time::timeout(CONNECT_LIMIT + CALL_LIMIT, async {
        client.init().await?;
        client.ping::<String>(None).await
    });
    let result = connected.await;
    // Best effort: the check is over.
    let _ = tokio::time::timeout(CALL_LIMIT, client.quit()).await;
    match result {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) if is_refusal(&error) => Err(RedisError::Refused(error.details().to_owned())),
        Ok(Err(error)) => {
            warn!(%error, "Redis cannot be reached yet; this instance is not ready until it can");
            Ok(())
        }
        Err(_) => {
            warn!("Redis does not answer yet; this instance is not ready until it does");
            Ok(())
        }
    }
}

/// Between two questions to a cluster whose slots are moving.
const REDIRECTED: Duration = Duration::from_millis(50);

/// Asks again while a cluster answers that the slot is elsewhere: nothing has been carried out then. fred has read
/// the cluster's state anew before it says so.
///
/// # Errors
/// What `ask` says at last.
pub(super) async fn redirected<T>(ask: impl AsyncFn() -> Result<T, Error>) -> Result<T, Error> {
    let deadline = tokio::time::Instant::now() + CALL_LIMIT;
    loop {
        match ask().await {
            Err(error) if is_redirection(&error) && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(REDIRECTED).await;
            }
            answer => return answer,
        }
    }
}

/// What becomes of MOVED and ASK when no redirection is followed.
pub(super) fn is_redirection(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Routing) && error.details().starts_with("Too many redirections")
}

/// What the instances with this Redis agree on as `key`: the proposal of the first that asked.
///
/// # Errors
/// [`RedisError`] when Redis cannot be asked.
pub async fn agree(config: &Config, key: &str, proposal: String) -> Result<String, RedisError> {
    let config = Config { fail_fast: true, ..config.clone() };
    let away = |error: Error| RedisError::Away(error.details().to_owned());
    let client = builder(&config).build().map_err(away)?;
    let asked = tokio::time::timeout(CONNECT_LIMIT + CALL_LIMIT, async {
        client.init().await?;
        let () = client.set(key, proposal, None, Some(SetOptions::NX), false).await?;
        client.get(key).await
    });
    let result = asked.await;
    // Best effort: the answer is here.
    let _ = tokio::time::timeout(CALL_LIMIT, client.quit()).await;
    result.map_err(|_| RedisError::Away("no answer in time".to_owned()))?.map_err(away)
}

fn is_refusal(error: &Error) -> bool {
    let details = error.details();
    matches!(error.kind(), ErrorKind::Auth)
        || ["WRONGPASS", "NOAUTH", "NOPERM", "ERR invalid password", "ERR AUTH"]
            .iter()
            .any(|code| details.contains(code))
}
