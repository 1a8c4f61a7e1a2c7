//! Claim, renew, release and look as Lua scripts: each is atomic, and publishes what it changed, so that
//! a channel's order is the room's order.

use bytes::Bytes;
use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::interfaces::{ClientLike as _, LuaInterface as _};
use fred::types::scripts::Script;
use fred::types::{CustomCommand, Value};
use futures_util::future::join;
use uuid::Uuid;

use super::client::unconnected;
use super::names::{Names, ProbeNames};
use super::nodes::{Node, Nodes};
use crate::backplane::RoomSnapshot;
use crate::relay::envelope::{Envelope, claimed_prefix, released_prefix};
use crate::relay::ids::{Attempt, ClientId, ConnectionId, Device, Generation, InstanceId, Member, UserId};
use crate::relay::record::{Claim, ClaimOutcome, Claimed, Holder, Lease, Renewed};

/// How long a probe's key lives.
const PROBE_LIVES_MS: u32 = 60_000;

/// What a script has done.
pub(super) struct Done<T> {
    pub(super) outcome: T,
    /// What the script has published at a node where its subscribers may not be. While a slot moves, they are
    /// at the node that it leaves. A moment later some of them still are.
    pub(super) unheard: Option<Envelope>,
}

/// The scripts, and how they publish.
#[derive(Debug, Clone)]
pub(super) struct Scripts {
    names: Names,
    lease_ms: u64,
    publish: &'static str,
    claim: Script,
    renew: Script,
    release: Script,
    room: Script,
    probe: Script,
    owner: Script,
}

impl Scripts {
    /// Scripts for rooms under these names; `sharded` on a cluster.
    #[must_use]
    pub(super) fn new(names: Names, lease_ms: u64, sharded: bool) -> Self {
        Self {
            names,
            lease_ms,
            publish: if sharded { "SPUBLISH" } else { "PUBLISH" },
            claim: Script::from_lua(concat!(include_str!("prelude.lua"), include_str!("claim.lua"))),
            renew: Script::from_lua(concat!(include_str!("prelude.lua"), include_str!("renew.lua"))),
            release: Script::from_lua(include_str!("release.lua")),
            room: Script::from_lua(concat!(include_str!("prelude.lua"), include_str!("room.lua"))),
            probe: Script::from_lua(include_str!("probe.lua")),
            owner: Script::from_lua(include_str!("owner.lua")),
        }
    }

    /// The channels of a user's devices, which a script publishes on.
    fn channels(&self, user: &UserId) -> [Value; 2] {
        Device::ALL.map(|device| self.names.channel(user, device).into())
    }

    /// Runs a script where the room is, and asks again while a cluster says that its slot is elsewhere: nothing has been
    /// carried out then. With the answer comes whether it ran behind such a redirection.
    async fn run(
        &self,
        script: &Script,
        nodes: &Nodes,
        user: &UserId,
        arguments: Vec<Value>,
    ) -> Result<(Value, bool), Error> {
        let key = self.names.room(user);
        let slot = nodes.slot(&key);
        nodes
            .redirected(slot, async |node: &Node, is_asking| {
                let client = node.commands.client().ok_or_else(unconnected)?;
                call(&client, script, &key, &arguments, is_asking).await
            })
            .await
    }

    /// Carries out on `client` what a handshake needs, on a key of our own. Redis's words when it refuses to write.
    ///
    /// # Errors
    /// What Redis or fred says.
    pub(super) async fn probe(
        &self,
        client: &Client,
        names: &ProbeNames,
        payload: Bytes,
    ) -> Result<Result<(), String>, Error> {
        let arguments =
            [Value::Bytes(payload), self.publish.into(), names.channel.clone().into(), PROBE_LIVES_MS.into()];
        let (is_written, rest) = numbered(call(client, &self.probe, &names.key, &arguments, false).await?)?;
        if is_written == 1 {
            return Ok(Ok(()));
        }
        Ok(Err(rest.first().and_then(Value::as_str).unwrap_or_default().to_string()))
    }

    /// Runs a script by its text, as after a restart of Redis.
    ///
    /// # Errors
    /// What Redis or fred says.
    pub(super) async fn by_text(&self, client: &Client, key: &str) -> Result<(), Error> {
        client.eval::<Value, _, _, _>("return {1}", key, Vec::<Value>::new()).await.map(|_| ())
    }

    /// Takes the prefix for this fleet, or keeps it; false when it is another fleet's.
    ///
    /// # Errors
    /// What Redis or fred says.
    pub(super) async fn own(&self, client: &Client, owner: &str) -> Result<bool, Error> {
        let arguments = [owner.into(), (self.lease_ms * 3).to_string().into()];
        let (is_ours, _) =
            numbered(call(client, &self.owner, &self.names.owner(), &arguments, false).await?)?;
        Ok(is_ours == 1)
    }

    /// See [`crate::relay::record::Record::claim`].
    ///
    /// # Errors
    /// What Redis or fred says.
    pub(super) async fn claim(
        &self,
        nodes: &Nodes,
        user: &UserId,
        claim: &Claim,
    ) -> Result<Done<ClaimOutcome>, Error> {
        let name = claim.client.as_ref().map_or("", ClientId::as_str);
        let prefix = claimed_prefix(claim.device, claim.connection, claim.instance, claim.client.as_ref());
        let [desktop, mobile] = self.channels(user);
        let arguments: Vec<Value> = vec![
            claim.device.as_str().into(),
            claim.connection.to_string().into(),
            claim.instance.to_string().into(),
            name.into(),
            claim.known.to_string().into(),
            self.lease_ms.to_string().into(),
            self.publish.into(),
            Value::Bytes(prefix),
            desktop,
            mobile,
            number_or_nothing(claim.attempt),
        ];
        let (answer, is_elsewhere) = self.run(&self.claim, nodes, user, arguments).await?;
        let outcome = match numbered(answer)? {
            (0, rest) => {
                let retry_after_ms = rest.first().and_then(Value::as_u64).ok_or_else(unreadable)?;
                ClaimOutcome::TooManyEvictions { retry_after_ms }
            }
            (2, rest) => {
                let attempt = rest.first().and_then(Value::as_u64).and_then(Attempt::new);
                ClaimOutcome::Superseded { attempt: attempt.ok_or_else(unreadable)? }
            }
            (_, rest) => match rest.as_slice() {
                [generation, replaced, other] => ClaimOutcome::Claimed(Claimed {
                    generation: Generation(generation.as_u64().ok_or_else(unreadable)?),
                    replaced: holder(replaced)?.map(|lease| lease.holder),
                    other: holder(other)?.map(|lease| lease.holder),
                }),
                _ => return Err(unreadable()),
            },
        };
        let unheard = match &outcome {
            ClaimOutcome::Claimed(claimed) if is_elsewhere => {
                let member = Member { connection: claim.connection, generation: claimed.generation };
                let holder = Holder { member, instance: claim.instance, client: claim.client.clone() };
                Some(Envelope::Claimed { device: claim.device, holder })
            }
            ClaimOutcome::Claimed(_)
            | ClaimOutcome::TooManyEvictions { .. }
            | ClaimOutcome::Superseded { .. } => None,
        };
        Ok(Done { outcome, unheard })
    }

    /// See [`crate::relay::record::Record::renew`].
    ///
    /// # Errors
    /// What Redis or fred says.
    pub(super) async fn renew(
        &self,
        nodes: &Nodes,
        user: &UserId,
        device: Device,
        mine: &Holder,
        attempt: Option<Attempt>,
    ) -> Result<Done<Renewed>, Error> {
        let claimed = Envelope::Claimed { device, holder: mine.clone() };
        let [desktop, mobile] = self.channels(user);
        let arguments: Vec<Value> = vec![
            device.as_str().into(),
            mine.member.connection.to_string().into(),
            mine.instance.to_string().into(),
            mine.client.as_ref().map_or("", ClientId::as_str).into(),
            mine.member.generation.to_string().into(),
            self.lease_ms.to_string().into(),
            self.publish.into(),
            Value::Bytes(claimed.encode()),
            desktop,
            mobile,
            number_or_nothing(attempt),
        ];
        let (answer, is_elsewhere) = self.run(&self.renew, nodes, user, arguments).await?;
        let outcome = match numbered(answer)? {
            (0, rest) => match rest.as_slice() {
                [connection, generation, lease] => {
                    let connection = connection.as_str().and_then(|id| id.parse().ok()).map(ConnectionId);
                    let generation = generation.as_u64().map(Generation);
                    let (Some(connection), Some(generation)) = (connection, generation) else {
                        return Err(unreadable());
                    };
                    let holder = holder(lease)?.map(|lease| lease.holder);
                    Renewed::Overwritten { by: Member { connection, generation }, holder }
                }
                _ => return Err(unreadable()),
            },
            (_, rest) => {
                let other = rest.first().ok_or_else(unreadable)?;
                Renewed::Kept { other: holder(other)?.map(|lease| lease.holder) }
            }
        };
        // It may have put the slot back.
        let unheard = matches!(outcome, Renewed::Kept { .. }).then_some(claimed).filter(|_| is_elsewhere);
        Ok(Done { outcome, unheard })
    }

    /// See [`crate::relay::record::Record::release`].
    ///
    /// # Errors
    /// What Redis or fred says.
    pub(super) async fn release(
        &self,
        nodes: &Nodes,
        user: &UserId,
        device: Device,
        connection: ConnectionId,
    ) -> Result<Done<()>, Error> {
        let [desktop, mobile] = self.channels(user);
        let arguments: Vec<Value> = vec![
            device.as_str().into(),
            connection.to_string().into(),
            self.publish.into(),
            Value::Bytes(released_prefix(device, connection)),
            desktop,
            mobile,
        ];
        let (answer, is_elsewhere) = self.run(&self.release, nodes, user, arguments).await?;
        let (_, rest) = numbered(answer)?;
        let generation = rest.first().and_then(Value::as_u64).map(Generation).filter(|_| is_elsewhere);
        let unheard = generation.map(|generation| {
            let member = Member { connection, generation };
            Envelope::Released { device, member }
        });
        Ok(Done { outcome: (), unheard })
    }

    /// The holders of both slots; leases in milliseconds from now.
    ///
    /// # Errors
    /// What Redis or fred says.
    pub(super) async fn room(&self, nodes: &Nodes, user: &UserId) -> Result<RoomSnapshot, Error> {
        let (answer, _) = self.run(&self.room, nodes, user, Vec::new()).await?;
        let (now, rest) = numbered(answer)?;
        let [desktop, mobile, desktop_attempt, mobile_attempt] = rest.as_slice() else {
            return Err(unreadable());
        };
        let left = |lease: Option<Lease>, field: &Value| {
            lease.map(|lease| Lease {
                ends: lease.ends.saturating_sub(now),
                attempt: attempt_of(lease.holder.member.connection, field),
                ..lease
            })
        };
        Ok([left(holder(desktop)?, desktop_attempt), left(holder(mobile)?, mobile_attempt)])
    }
}

/// An argument of a script that may be absent.
fn number_or_nothing(attempt: Option<Attempt>) -> Value {
    attempt.map_or_else(String::new, |attempt| attempt.to_string()).into()
}

/// `connection attempt`. The connection stands beside the number, because an older instance knows no
/// attempts. It leaves the field as it is when it gives the slot to another connection.
fn attempt_of(connection: ConnectionId, field: &Value) -> Option<Attempt> {
    let (owner, attempt) =
        field.as_str()?.split_once(' ').map(|(owner, it)| (owner.to_owned(), Attempt::parse(it)))?;
    attempt.filter(|_| owner == connection.to_string())
}

/// Calls a script by its SHA. A server may not know it, after a restart or a flush of its scripts. It then
/// gets the text in one step: between loading and calling, the script could be flushed again.
pub(super) async fn call(
    client: &Client,
    script: &Script,
    key: &str,
    arguments: &[Value],
    is_asking: bool,
) -> Result<Value, Error> {
    let by_sha = client.evalsha(script.sha1().clone(), key, arguments.to_vec());
    let answer = if is_asking { after_asking(client, by_sha).await } else { by_sha.await };
    match answer {
        Err(error) if error.details().starts_with("NOSCRIPT") => {
            let Some(text) = script.lua() else { return Err(error) };
            let by_text = client.eval(text.clone(), key, arguments.to_vec());
            if is_asking { after_asking(client, by_text).await } else { by_text.await }
        }
        answer => answer,
    }
}

/// A node that takes a slot over answers for it only right behind an ASKING. Both take their places in fred's queue in
/// this order, when they are first polled.
async fn after_asking(
    client: &Client,
    command: impl Future<Output = Result<Value, Error>>,
) -> Result<Value, Error> {
    let asking = client.custom::<Value, Value>(CustomCommand::new_static("ASKING", None, false), Vec::new());
    let (asked, answer) = join(asking, command).await;
    asked?;
    answer
}

fn unreadable() -> Error {
    Error::new(ErrorKind::Parse, "a script's answer has an unknown form")
}

/// Every answer begins with a number: one that begins with text could be taken for a pub/sub message.
fn numbered(answer: Value) -> Result<(u64, Vec<Value>), Error> {
    let Value::Array(mut answer) = answer else {
        return Err(unreadable());
    };
    if answer.is_empty() {
        return Err(unreadable());
    }
    let rest = answer.split_off(1);
    let number = answer.first().and_then(Value::as_u64).ok_or_else(unreadable)?;
    Ok((number, rest))
}

/// `connection instance client generation lease_end`, or nothing.
pub(super) fn holder(value: &Value) -> Result<Option<Lease>, Error> {
    let text = value.as_str().ok_or_else(unreadable)?;
    if text.is_empty() {
        return Ok(None);
    }
    let parse = || {
        let mut parts = text.split(' ');
        let connection = ConnectionId(parts.next()?.parse::<Uuid>().ok()?);
        let instance = InstanceId(parts.next()?.parse::<Uuid>().ok()?);
        let client = match parts.next()? {
            "." => None,
            name => Some(ClientId::new(name)?),
        };
        let generation = Generation(parts.next()?.parse().ok()?);
        let ends = parts.next()?.parse().ok()?;
        let holder = Holder { member: Member { connection, generation }, instance, client };
        Some(Lease { holder, ends, attempt: None })
    };
    parse().map(Some).ok_or_else(unreadable)
}
