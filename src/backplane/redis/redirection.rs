//! What a node of a cluster answers when it does not serve the slot (Redis cluster specification, "Redirection").

use fred::error::Error;
use fred::types::config::Server;

/// Why a command was not carried out, and where it may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Redirection {
    /// The slot has moved.
    Moved(Server),
    /// The slot is moving, and this key has moved.
    Ask(Server),
    /// The slot is moving: later.
    TryAgain,
}

impl Redirection {
    /// What an error says about the way of a command that was not carried out.
    pub(super) fn of(error: &Error) -> Option<Self> {
        let mut words = error.details().split(' ');
        let kind = words.next()?;
        let server = |mut words: std::str::Split<'_, char>| {
            let (host, port) = words.nth(1)?.rsplit_once(':')?;
            Some(Server::new(host, port.parse().ok()?))
        };
        match kind {
            "MOVED" => server(words).map(Self::Moved),
            "ASK" => server(words).map(Self::Ask),
            "TRYAGAIN" => Some(Self::TryAgain),
            _ => None,
        }
    }

    /// A node that does not know its own address leaves it out: it is the one that was asked.
    pub(super) fn seen_from(self, asked: Option<&Server>) -> Self {
        let fill = |server: Server| match asked {
            Some(asked) if server.host.is_empty() => Server::new(asked.host.to_string(), server.port),
            _ => server,
        };
        match self {
            Self::Moved(server) => Self::Moved(fill(server)),
            Self::Ask(server) => Self::Ask(fill(server)),
            Self::TryAgain => Self::TryAgain,
        }
    }
}

/// True when a node has refused a publish for its slot's sake. It has certainly not carried it out, so that another try
/// is no second one.
pub(super) fn is_refused_for_its_slot(error: &Error) -> bool {
    Redirection::of(error).is_some() || error.details().starts_with("CLUSTERDOWN")
}

#[cfg(test)]
mod tests {
    use fred::error::ErrorKind;

    use super::*;

    fn error(words: &str) -> Error {
        Error::new(ErrorKind::Cluster, words.to_owned())
    }

    #[test]
    fn redirections_are_read_as_redis_writes_them() {
        let of = |words: &str| Redirection::of(&error(words));
        let server = Server::new("127.0.0.1", 7001);
        assert_eq!(of("MOVED 12182 127.0.0.1:7001"), Some(Redirection::Moved(server.clone())));
        assert_eq!(of("ASK 12182 127.0.0.1:7001"), Some(Redirection::Ask(server.clone())));
        assert_eq!(of("MOVED 1 fd00::1:7001"), Some(Redirection::Moved(Server::new("fd00::1", 7001))));
        assert_eq!(
            of("TRYAGAIN Multiple keys request during rehashing of slot"),
            Some(Redirection::TryAgain)
        );
        for words in ["MOVED", "MOVED 1", "MOVED 1 host", "ASK 1 host:port", "OOM command not allowed", ""] {
            assert_eq!(of(words), None, "{words}");
        }
        let asked = Server::new("127.0.0.1", 7000);
        let filled = of("MOVED 1 :7001").map(|redirection| redirection.seen_from(Some(&asked)));
        assert_eq!(filled, Some(Redirection::Moved(server)));
    }

    #[test]
    fn what_was_refused_for_its_slot_was_not_carried_out() {
        for (words, is_refused) in [
            ("MOVED 12182 127.0.0.1:7001", true),
            ("ASK 12182 127.0.0.1:7001", true),
            ("TRYAGAIN Multiple keys request during rehashing of slot", true),
            ("CLUSTERDOWN Hash slot not served", true),
            ("NOPERM User relay has no permissions to access one of the channels", false),
            ("Request timed out.", false),
            ("the connection has ended", false),
        ] {
            assert_eq!(is_refused_for_its_slot(&error(words)), is_refused, "{words}");
        }
    }
}
