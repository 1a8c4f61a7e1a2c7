//! The start: everything that an instance needs of Redis is carried out once, on keys of its own. A *mistake*, which no
//! waiting mends, ends the start; a *state* is waited for.

use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::interfaces::{ClientLike, ClusterInterface as _, PubsubInterface as _};
use fred::types::{CustomCommand, Value};
use fred::util::redis_keyslot;
use futures_util::future::join;
use tokio::time::timeout;

use super::RedisSettings;
use super::access::RedisError;
use super::client::{CONNECT_LIMIT, close};
use super::names::Names;
use super::scripts::Scripts;
use super::words::{cause_of, is_mistake_of_certificates};
use crate::backplane::CALL_LIMIT;
use crate::backplane::connectivity::Cause;

/// The first versions that do what an instance needs.
const LEAST: &str = "duorelay needs Redis 6.2 or Valkey 7.2, or newer, and Redis 7.0 for a cluster";
/// The refusal of a prefix that another fleet owns.
pub(super) const FOREIGN: &str = "DUORELAY_REDIS_PREFIX is in use by instances with another issuer or audience: \
                                  each project needs a prefix or a database of its own";

/// What the start has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checked {
    /// Everything was carried out.
    Well,
    /// Redis does not do it yet; it is asked again.
    Wait,
}

/// Carries out everything once.
///
/// # Errors
/// [`RedisError::Mistake`], which names what is missing.
pub async fn check(settings: &RedisSettings) -> Result<Checked, RedisError> {
    let template = &settings.template;
    let limit = CONNECT_LIMIT + CALL_LIMIT * 3;
    let client =
        template.client(None, false).map_err(|error| RedisError::Setting(error.details().to_owned()))?;
    let result = match timeout(limit, carry_out(&client, settings)).await {
        Ok(result) => result,
        Err(_) => Err(Error::new(ErrorKind::Timeout, "").into()),
    };
    close(&client).await;
    let problem = match result {
        Ok(()) => return Ok(Checked::Well),
        Err(problem) => problem,
    };
    let (what, error, hint) = match problem {
        Problem::Mistake(mistake) => return Err(RedisError::Mistake(mistake)),
        Problem::Unconnected(error) => (None, error, true),
        Problem::Failed(what, error) => (what, error, false),
    };
    let (cause, words) = cause_of(&error);
    let variable = template.variable();
    match cause {
        _ if is_mistake_of_certificates(&error) => {
            Err(RedisError::Mistake(format!("the Redis of {variable} cannot be reached over TLS: {words}")))
        }
        Cause::Permission => Err(RedisError::Mistake(format!(
            "the user of {variable} lacks a right{}: {words} (README lists the rights that duorelay needs)",
            what.map(|what| format!(" to {what}")).unwrap_or_default(),
        ))),
        Cause::Password if !template.has_file() => {
            Err(RedisError::Mistake(format!("Redis refuses the user or the password of {variable}: {words}")))
        }
        // Without the command that each connection begins with, or without the protocol that it asks for.
        Cause::Other if words.contains("unknown command") || words.starts_with("NOPROTO") => {
            Err(RedisError::Mistake(format!("the Redis of {variable} is too old: {LEAST} ({words})")))
        }
        cause => {
            let hint = hint.then(|| hint_at_tls(variable, template.has_tls(), cause, &words)).flatten();
            let words = words + &hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
            settings.shared.journal().note("this instance waits for Redis", cause, &words);
            Ok(Checked::Wait)
        }
    }
}

/// A server without TLS waits for the end of what it takes for a command; one with TLS alone resets the connection.
fn hint_at_tls(variable: &str, has_tls: bool, cause: Cause, words: &str) -> Option<String> {
    const ENDED: [&str; 3] = ["Connection reset", "unexpected eof", "Broken pipe"];
    match has_tls {
        true if cause == Cause::Silent => {
            Some(format!("{variable} begins with rediss: perhaps this server speaks no TLS"))
        }
        false if ENDED.iter().any(|ended| words.starts_with(ended)) => {
            Some(format!("{variable} does not begin with rediss: perhaps this server speaks TLS alone"))
        }
        true | false => None,
    }
}

enum Problem {
    Mistake(String),
    /// There is no connection.
    Unconnected(Error),
    /// What was tried, and what Redis or fred says.
    Failed(Option<String>, Error),
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::Failed(None, error)
    }
}

fn tried(what: &str) -> impl Fn(Error) -> Problem {
    move |error| Problem::Failed(Some(what.to_owned()), error)
}

async fn carry_out(client: &Client, settings: &RedisSettings) -> Result<(), Problem> {
    let template = &settings.template;
    client.init().await.map_err(Problem::Unconnected)?;
    let hello = CustomCommand::new_static("HELLO", None, false);
    let hello: Value = client.custom(hello, Vec::<Value>::new()).await?;
    let about = |wanted: &str| {
        let Value::Map(map) = &hello else { return None };
        map.iter().find(|(key, _)| key.as_str() == Some(wanted)).and_then(|(_, value)| value.as_string())
    };
    let is_cluster = about("mode").as_deref() == Some("cluster");
    if is_cluster && !template.is_cluster() {
        return Err(Problem::Mistake(format!(
            "{} names a node of a cluster: use redis-cluster:// (or rediss-cluster://)",
            template.variable()
        )));
    }
    let names = Names::new(&settings.prefix, template.database());
    let lease_ms = u64::try_from(settings.lease.as_millis()).unwrap_or(u64::MAX);
    let scripts = Scripts::new(names.clone(), lease_ms, is_cluster);
    let who = format!("{}:start", settings.instance);
    let own = names.probe(&who, 0);
    let payload = bytes::Bytes::from_static(b"start");
    client.ping::<Value>(None).await.map_err(tried("run the 'ping' command"))?;
    let probed = scripts.probe(client, &own, payload.clone()).await.map_err(tried("run the scripts"))?;
    if let Err(words) = probed {
        let (what, error) = (Some("run the scripts".to_owned()), Error::new(ErrorKind::Unknown, words));
        return Err(Problem::Failed(what, error));
    }
    scripts.by_text(client, &own.key).await.map_err(tried("run the 'eval' command"))?;
    if is_cluster {
        client.cluster_info::<Value>().await.map_err(tried("run the 'cluster|info' command"))?;
        client.cluster_slots::<Value>().await.map_err(tried("run the 'cluster|slots' command"))?;
        // It holds for the command behind it alone, which has no key here.
        let asking = CustomCommand::new_static("ASKING", None, false);
        let asked = client.custom::<Value, _>(asking, Vec::<Value>::new()).await;
        asked.map_err(tried("run the 'asking' command"))?;
    }
    let [desktop, mobile] = names.nobodys(&who);
    let mut channels = vec![own.channel.clone(), desktop, mobile];
    channels.extend([names.unheard_by(settings.instance), names.instances(), names.unheard()]);
    publish_and_subscribe(client, channels, &own.channel, payload, is_cluster).await?;
    if !scripts.own(client, &settings.owner).await.map_err(tried("keep the prefix's owner"))? {
        return Err(Problem::Mistake(FOREIGN.to_owned()));
    }
    Ok(())
}

/// Publishes and subscribes on channels of each kind: rights may cover some and not others.
async fn publish_and_subscribe(
    client: &Client,
    channels: Vec<String>,
    own: &str,
    payload: bytes::Bytes,
    is_cluster: bool,
) -> Result<(), Problem> {
    if is_cluster {
        client.spublish::<u64, _, _>(own, payload).await.map_err(tried("run the 'spublish' command"))?;
        for channel in channels {
            client.ssubscribe(channel).await.map_err(tried("subscribe to its channels"))?;
        }
        let slot = redis_keyslot(own.as_bytes());
        let server = client.cached_cluster_state().and_then(|map| map.get_server(slot).cloned());
        if let Some(server) = server {
            // The PING has to follow to the same node.
            let node = client.with_cluster_node(server);
            answered(&node, node.sunsubscribe(own)).await.map_err(tried("unsubscribe"))?;
        }
    } else {
        client.publish::<u64, _, _>(own, payload).await.map_err(tried("run the 'publish' command"))?;
        for channel in channels {
            answered(client, client.subscribe(channel)).await.map_err(tried("subscribe to its channels"))?;
        }
        answered(client, client.unsubscribe(own)).await.map_err(tried("unsubscribe"))?;
    }
    Ok(())
}

/// What Redis says to a command to which fred expects no answer: it takes a refusal for the answer to the PING behind it.
/// Both leave at once, or a refusal would come when nobody waits for anything, and be lost.
async fn answered(
    client: &impl ClientLike,
    command: impl Future<Output = Result<(), Error>>,
) -> Result<(), Error> {
    let (sent, pong) = join(command, client.ping::<Value>(None)).await;
    sent?;
    pong.map(|_| ())
}
