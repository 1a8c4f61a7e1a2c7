//! What operators and `GET /v1/session` ask of a room.

use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use tokio::time::timeout;

use crate::backplane::Published;
pub(super) use crate::backplane::{CALL_LIMIT, RoomSnapshot};
use crate::relay::classic::classic_text;
use crate::relay::close::Close;
use crate::relay::envelope::Envelope;
use crate::relay::ids::{Device, UserId};
use crate::relay::outbox::Outgoing;
use crate::relay::protocol::{Protocol, Sender, ServerMessage, compact_json, raw_json};
use crate::relay::record::Holder;
use crate::relay::refusal::Refusal;

use super::{Hub, Seat};

impl Hub {
    /// The holders of a room's slots, without those whose instance is silent.
    ///
    /// # Errors
    /// [`Refusal::BackplaneUnavailable`]
    pub async fn snapshot(&self, user: &UserId) -> Result<RoomSnapshot, Refusal> {
        match timeout(CALL_LIMIT, self.backplane.room(user)).await {
            Ok(Ok(slots)) => {
                let alive = |slot: Option<_>| {
                    slot.filter(|lease: &crate::relay::record::Lease| {
                        !self.backplane.is_silent(lease.holder.instance)
                    })
                };
                Ok(slots.map(alive))
            }
            Ok(Err(_)) | Err(_) => Err(Refusal::BackplaneUnavailable),
        }
    }

    /// Hands a message from an operator to the devices of a user, wherever they are; returns to how many.
    ///
    /// # Errors
    /// [`Refusal::BackplaneUnavailable`]
    pub async fn send_to_user(
        self: &Rc<Self>,
        user: &UserId,
        devices: &[Device],
        data: Bytes,
    ) -> Result<usize, Refusal> {
        let envelope = |_: &Holder| Envelope::ServerMessage { data: data.clone().into() };
        self.to_devices(user, devices, envelope, |to| self.deliver_server_message(to, &data)).await
    }

    /// Disconnects devices of a user with 4002, wherever they are; returns how many.
    ///
    /// # Errors
    /// [`Refusal::BackplaneUnavailable`]
    pub async fn disconnect_user(
        self: &Rc<Self>,
        user: &UserId,
        devices: &[Device],
    ) -> Result<usize, Refusal> {
        let envelope = |holder: &Holder| Envelope::Disconnect { connection: holder.member.connection };
        self.to_devices(user, devices, envelope, |to| self.disconnect(to)).await
    }

    pub(super) async fn to_devices(
        self: &Rc<Self>,
        user: &UserId,
        devices: &[Device],
        envelope: impl Fn(&Holder) -> Envelope,
        here: impl Fn(&Rc<Seat>),
    ) -> Result<usize, Refusal> {
        let slots = self.snapshot(user).await?;
        let mut reached = 0;
        for (device, lease) in Device::ALL.into_iter().zip(slots) {
            let Some(lease) = lease.filter(|_| devices.contains(&device)) else {
                continue;
            };
            let local = self.room(user).and_then(|room| room.borrow().here(device).cloned());
            if let Some(seat) = local {
                here(&seat);
                reached += 1;
            } else if lease.holder.instance != self.settings.instance {
                let published = self.backplane.publish(user, device, envelope(&lease.holder), Instant::now());
                reached += usize::from(published == Published::Queued);
            }
        }
        Ok(reached)
    }

    pub(super) fn deliver_server_message(self: &Rc<Self>, to: &Rc<Seat>, data: &Bytes) {
        let data = std::str::from_utf8(data).unwrap_or("null");
        let text = match to.protocol {
            Protocol::V1 => {
                let (from, data) = (Sender::Server, Some(raw_json(data)));
                ServerMessage::Message { from, data, text: None, id: None, ack: false }.encode()
            }
            Protocol::Classic => {
                let occupancy = to.room.borrow().occupancy();
                classic_text(occupancy, &to.label(), &compact_json(data))
            }
        };
        self.push_reliable(to, Outgoing::text(text, None));
    }

    pub(super) fn disconnect(self: &Rc<Self>, seat: &Rc<Seat>) {
        seat.close(None, Close::Disconnected);
        self.leave(seat);
    }
}
