//! What the options mean.

use clap::ValueEnum;
use url::Url;

use super::super::result::count;
use super::{LoadOptions, Scenario};
use crate::relay::ids::Device;

/// Where a user's two sockets are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Placement {
    /// On two different instances.
    #[default]
    Cross,
    /// On one instance, so that Redis carries no frame.
    Same,
    /// Every second user on two, the others on one.
    Mixed,
}

/// The devices that send frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Direction {
    /// Both devices of each user.
    #[default]
    Both,
    /// Desktops only, to their mobiles.
    ToMobile,
    /// Mobiles only, to their desktops.
    ToDesktop,
}

impl LoadOptions {
    /// What a frame carries at least: its stream id and what is counted by.
    pub const SMALLEST_FRAME: usize = 26;

    /// Names of those whose CPU and memory are read, in the order of a reading.
    #[must_use]
    pub fn watched(&self) -> Vec<String> {
        let metrics = self.metrics.iter().map(|url| url.authority().to_owned());
        metrics.chain(self.sources_of_figures.iter().map(|source| source.name())).collect()
    }

    /// Whether devices of this kind stream frames.
    #[must_use]
    pub fn sends(&self, device: Device) -> bool {
        let silent = match device {
            Device::Desktop => Direction::ToDesktop,
            Device::Mobile => Direction::ToMobile,
        };
        self.scenario.streams() && self.direction != silent
    }

    /// The instance of a user's device, as an index into [`Self::urls`].
    #[must_use]
    pub fn place(&self, user: usize, device: Device) -> usize {
        let count = (self.urls.len() - usize::from(self.through.is_some())).max(1);
        let cross = match self.placement {
            Placement::Cross => true,
            Placement::Same => false,
            Placement::Mixed => user % 2 == 1,
        };
        match device {
            Device::Desktop => user % count,
            // Receivers that go through a balancer find it behind the instances.
            Device::Mobile if self.through.is_some() => count,
            Device::Mobile => (user % count + usize::from(cross)) % count,
        }
    }

    /// The bytes that a slow receiver reads a second, for devices that are slow.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "bytes a second, rounded")]
    pub fn link_of(&self, device: Device) -> Option<usize> {
        let half =
            || (count((self.frame_bytes * self.streams.len()) as u64) * self.fps / 2.0).max(1.0) as usize;
        let slow = self.scenario == Scenario::Slow && device == Device::Mobile;
        slow.then(|| self.link.unwrap_or_else(half))
    }

    /// The demo that signs users in, unless something else does.
    #[must_use]
    pub fn demo_url(&self) -> Option<Url> {
        let mut url = self.demo.as_ref().or(self.urls.first())?.clone();
        let scheme = if ["wss", "https"].contains(&url.scheme()) { "https" } else { "http" };
        url.set_scheme(scheme).ok()?;
        Some(url)
    }
}
