//! One connection to one server, and the next one after it. fred restores nothing by itself that would be
//! worth it, and its own way to reconnect waits for servers that are gone. So each connection is a client of
//! its own, with the user and the password of its time. It ends at its first error.

use std::cell::{Cell, RefCell};

use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::interfaces::{ClientLike as _, EventInterface as _};
use fred::types::Message;
use fred::types::config::Server;
use futures_util::future::FutureExt as _;
use tokio::sync::Notify;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinHandle;

use super::client::Template;

/// One connection after another.
pub(super) struct Link {
    template: Template,
    server: Option<Server>,
    hears: bool,
    client: RefCell<Option<Client>>,
    /// Grows with every connection: what was subscribed on an older one is void.
    epoch: Cell<u64>,
    renew: Notify,
}

/// A connection that is there.
pub(super) struct Connection {
    messages: Receiver<Message>,
    driver: JoinHandle<Result<(), Error>>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        // fred's task holds the socket.
        self.driver.abort();
    }
}

impl Link {
    /// No connection yet; `hears` says whether it is for subscriptions.
    pub(super) fn new(template: Template, server: Option<Server>, hears: bool) -> Self {
        Self {
            template,
            server,
            hears,
            client: RefCell::default(),
            epoch: Cell::new(0),
            renew: Notify::new(),
        }
    }

    /// The connection in use; none while it is made anew.
    pub(super) fn client(&self) -> Option<Client> {
        self.client.borrow().clone()
    }

    /// The number of the present connection.
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.get()
    }

    /// Ends the present connection; another one is made.
    pub(super) fn renew(&self) {
        if self.client.borrow().is_some() {
            self.renew.notify_one();
        }
    }

    /// Connects once, and gives up at the first error.
    pub(super) async fn connect(&self) -> Result<Connection, Error> {
        let client = self.template.client(self.server.as_ref(), self.hears)?;
        // Before connecting: no message is missed.
        let messages = client.message_rx();
        let driver = client.init().await?;
        // Meant for the one before.
        let _ = self.renew.notified().now_or_never();
        self.epoch.set(self.epoch.get() + 1);
        *self.client.borrow_mut() = Some(client);
        Ok(Connection { messages, driver })
    }

    /// Hands out messages until the connection ends. `None` when it was to end.
    pub(super) async fn drive(
        &self,
        connection: &mut Connection,
        on_message: impl Fn(Result<&Message, u64>),
    ) -> Option<Error> {
        let ended = loop {
            tokio::select! {
                biased;
                message = connection.messages.recv() => match message {
                    Ok(message) => on_message(Ok(&message)),
                    Err(RecvError::Lagged(lost)) => on_message(Err(lost)),
                    Err(RecvError::Closed) => break Some(ended()),
                },
                () = self.renew.notified() => break None,
                result = &mut connection.driver => break Some(match result {
                    Ok(Err(error)) => error,
                    Ok(Ok(())) | Err(_) => ended(),
                }),
            }
        };
        *self.client.borrow_mut() = None;
        ended
    }

    /// Ends the connection when what is queued has left.
    pub(super) async fn quit(&self) {
        if let Some(client) = self.client() {
            let _ = client.quit().await;
        }
    }
}

fn ended() -> Error {
    Error::new(ErrorKind::IO, "the connection has ended")
}
