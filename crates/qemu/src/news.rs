//! What QEMU tells by itself, and the waiting for it.

use std::time::Duration;

use serde_json::Value;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::timeout;

use crate::control::ControlError;

/// How many devices may leave, or other things happen, before who waits for one must have looked.
pub(crate) const EVENTS_KEPT: usize = 16;

/// What QEMU tells by itself, for those who wait for it.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    /// Names of devices that have left.
    deleted: broadcast::Sender<String>,
    /// Everything else that is waited for.
    news: broadcast::Sender<News>,
}

/// Something that has happened to the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// The guest has opened the virtio-serial port with this id.
    PortOpened(String),
    /// Saving or loading the machine is in this state, in QEMU's words.
    Migration(String),
}

impl Default for Events {
    fn default() -> Self {
        Self {
            deleted: broadcast::Sender::new(EVENTS_KEPT),
            news: broadcast::Sender::new(EVENTS_KEPT),
        }
    }
}

impl Events {
    /// Devices that leave the machine from now on.
    pub(crate) fn deletions(&self) -> Deletions {
        Deletions(self.deleted.subscribe())
    }

    /// Other events from now on.
    pub(crate) fn listen(&self) -> Listening {
        Listening(self.news.subscribe())
    }

    /// Tells those who wait, and mostly nobody does.
    pub(crate) fn tell(&self, name: &str, data: &Value) {
        let text = |key: &str| data[key].as_str().map(str::to_owned);
        match name {
            "DEVICE_DELETED" => drop(text("device").map(|device| self.deleted.send(device))),
            "VSERPORT_CHANGE" if data["open"] == true => {
                drop(text("id").map(|id| self.news.send(News::PortOpened(id))));
            }
            "MIGRATION" => drop(text("status").map(|status| self.news.send(News::Migration(status)))),
            _ => {}
        }
    }
}

/// Names of devices as they leave the machine.
#[derive(Debug)]
pub(crate) struct Deletions(broadcast::Receiver<String>);

impl Deletions {
    /// Waits until the device `name` has left.
    ///
    /// # Errors
    /// [`ControlError::Silent`], [`ControlError::Closed`]
    pub(crate) async fn wait_for(mut self, name: &str, limit: Duration) -> Result<(), ControlError> {
        let heard = async {
            loop {
                match self.0.recv().await {
                    Ok(device) if device != name => {}
                    // So many have left that some names are lost: perhaps this one.
                    Ok(_) | Err(RecvError::Lagged(_)) => return Ok(()),
                    Err(RecvError::Closed) => return Err(ControlError::Closed),
                }
            }
        };
        timeout(limit, heard)
            .await
            .map_err(|_| ControlError::Silent { limit })?
    }
}

/// Events as they come.
#[derive(Debug)]
pub(crate) struct Listening(broadcast::Receiver<News>);

impl Listening {
    /// Waits for an event of which `look` makes something.
    ///
    /// # Errors
    /// [`ControlError::Silent`], [`ControlError::Closed`]
    pub(crate) async fn hear<T>(
        &mut self,
        mut look: impl FnMut(News) -> Option<T>,
        limit: Duration,
    ) -> Result<T, ControlError> {
        let heard = async {
            loop {
                match self.0.recv().await {
                    Ok(news) => {
                        if let Some(answer) = look(news) {
                            return Ok(answer);
                        }
                    }
                    // What is lost is what came first; what is waited for comes last.
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return Err(ControlError::Closed),
                }
            }
        };
        timeout(limit, heard)
            .await
            .map_err(|_| ControlError::Silent { limit })?
    }
}
