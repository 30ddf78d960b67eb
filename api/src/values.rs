//! The words that status documents use. Documents hold them as text, so that a client survives a word that a later
//! version adds.

use std::fmt;
use std::str::FromStr;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }
        impl $name {
            /// All of them.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];
            /// The word.
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$variant => $text),+ }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl From<$name> for String {
            fn from(word: $name) -> String {
                word.as_str().to_owned()
            }
        }
        impl FromStr for $name {
            type Err = UnknownWord;
            fn from_str(text: &str) -> Result<Self, UnknownWord> {
                match text { $($text => Ok($name::$variant),)+ _ => Err(UnknownWord) }
            }
        }
    };
}

/// A word that this version does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a word of this version")]
pub struct UnknownWord;

words! {
    /// The cluster's state in a word.
    Verdict {
        /// All members are online and in step.
        Healthy = "healthy",
        /// It works, with something wrong.
        Degraded = "degraded",
        /// Writes and linearizable reads are not possible.
        NoQuorum = "no_quorum",
        /// It waits for its first members.
        Forming = "forming",
    }
}
words! {
    /// A member's place in the meta group.
    MemberRole {
        /// Leads it.
        Leader = "leader",
        /// Votes in it.
        Follower = "follower",
        /// Receives it without a vote.
        Learner = "learner",
    }
}
words! {
    /// A member's state.
    MemberStatus {
        /// In step.
        Ok = "ok",
        /// Not reachable.
        Down = "down",
        /// Reachable, and behind.
        Lagging = "lagging",
        /// Gives its work away before maintenance.
        Draining = "draining",
        /// Receives its first copy of the data.
        Syncing = "syncing",
    }
}
words! {
    /// A daemon's state.
    DaemonState {
        /// Runs, with heartbeats.
        Running = "running",
        /// Ended, and is being started again.
        Restarting = "restarting",
        /// Without heartbeats for too long.
        Hung = "hung",
        /// Given up.
        Failed = "failed",
    }
}
words! {
    /// A node's state.
    NodeState {
        /// Restores what it has on disk.
        Starting = "starting",
        /// Waits for the first members of its cluster.
        Forming = "forming",
        /// Serves.
        Serving = "serving",
        /// Serves, while a daemon restarts.
        Degraded = "degraded",
        /// Does not take part; an operator must act.
        Refused = "refused",
        /// Stops.
        Stopping = "stopping",
    }
}
words! {
    /// What a group is for.
    GroupKind {
        /// Members, ids, ranges, settings.
        Meta = "meta",
        /// A range of keys.
        Data = "data",
    }
}
words! {
    /// Whether a replica votes.
    ReplicaKind {
        /// It does.
        Voter = "voter",
        /// It receives the log only.
        Learner = "learner",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_parse_back_and_nothing_else_does() {
        for word in Verdict::ALL {
            assert_eq!(word.as_str().parse(), Ok(*word));
        }
        for word in MemberStatus::ALL {
            assert_eq!(word.as_str().parse(), Ok(*word));
        }
        assert_eq!("HEALTHY".parse::<Verdict>(), Err(UnknownWord));
    }
}
