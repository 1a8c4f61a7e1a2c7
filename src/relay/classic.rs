//! The classic protocol's text: what a client without `duorelay.v1` receives.

use bytes::Bytes;

/// Which slots of a room are held, for the classic protocol's two lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occupancy {
    /// Is a desktop connected?
    pub desktop: bool,
    /// Is a mobile connected?
    pub mobile: bool,
}

/// A message to a classic client: a line feed, then four lines, each ended by a line feed.
#[must_use]
pub fn classic_text(occupancy: Occupancy, label: &str, text: &str) -> Bytes {
    let Occupancy { desktop, mobile } = occupancy;
    Bytes::from(format!(
        "\nDesktop connected: {desktop}\nMobile connected: {mobile}\nRoom: {label}\nMessage: {text}\n"
    ))
}

/// The last message to a classic connection that loses its slot; close 4001 follows.
pub const CLASSIC_OVERWRITTEN: &str = "This connection has been overwritten with a new one";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classic_text_is_a_line_feed_and_four_lines() {
        let occupancy = Occupancy { desktop: true, mobile: false };
        assert_eq!(
            classic_text(occupancy, "a@b.c", "x\ny"),
            "\nDesktop connected: true\nMobile connected: false\nRoom: a@b.c\nMessage: x\ny\n"
        );
    }
}
