//! Deliberate mistakes. The simulator is worth something only if it finds the mistakes that it is there for, so each of
//! these is built into the code that must not make it, and a test runs the simulator until it is caught.
//!
//! Without the feature `on`, which only that test's build has, [`mutated`] is the constant `false`: nothing of a mutation
//! is left in a binary. With it, one mutation may be chosen for the current thread.
#![forbid(unsafe_code)]

macro_rules! mutations {
    ($($name:ident = $text:literal, $about:literal;)*) => {
        /// A mistake.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Mutation {
            $(#[doc = $about] $name,)*
        }

        impl Mutation {
            /// Every mutation.
            pub const ALL: &'static [Mutation] = &[$(Mutation::$name,)*];

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self { $(Mutation::$name => $text,)* }
            }

            /// What it does wrong.
            pub const fn about(self) -> &'static str {
                match self { $(Mutation::$name => $about,)* }
            }
        }
    };
}

mutations! {
    AcknowledgeEarly = "acknowledge-early", "a follower acknowledges entries before they are durable";
    CountLeaderEarly = "count-leader-early", "a leader counts its own copy before it is durable";
    LeadUnrecorded = "lead-unrecorded", "a candidate counts its own vote before it is durable";
    ForgetVote = "forget-vote", "term and vote are not written";
    CommitPriorTerm = "commit-prior-term", "entries of earlier terms are committed by counting";
    VoteForAnyLog = "vote-for-any-log", "a vote is given to a candidate that lacks entries";
    UnclampedCommit = "unclamped-commit", "a heartbeat's commit index is believed for entries that may differ";
    ApplyUncommitted = "apply-uncommitted", "entries take effect once durable here, committed or not";
    ReadUnconfirmed = "read-unconfirmed", "a leader answers reads without confirming that it leads";
    CutDamage = "cut-damage", "damage below the durable mark is cut off like a torn tail";
    NoDirectorySync = "no-directory-sync", "the name of a new checkpoint is not synced";
    ForgetDuplicates = "forget-duplicates", "a checkpoint forgets what producers have sent";
    AcceptDuplicates = "accept-duplicates", "a repeated batch is appended again";
    WipedVotes = "wiped-votes", "a node with an empty disk takes its former place";
    KeepFewerFiles = "keep-fewer-files", "journal files are freed before the checkpoint that covers them is durable";
    BelieveOwnClock = "believe-own-clock", "a leader removes by age by its own clock, whatever the others say";
}

#[cfg(feature = "on")]
mod chosen {
    use super::Mutation;
    use std::cell::Cell;

    thread_local! {
        static CHOSEN: Cell<Option<Mutation>> = const { Cell::new(None) };
    }

    /// Make this mistake on the current thread from now on, or none.
    pub fn choose(mutation: Option<Mutation>) {
        CHOSEN.set(mutation);
    }

    /// Whether this mistake is to be made.
    pub fn mutated(mutation: Mutation) -> bool {
        CHOSEN.get() == Some(mutation)
    }
}

#[cfg(feature = "on")]
pub use chosen::{choose, mutated};

/// Whether this mistake is to be made: never.
#[cfg(not(feature = "on"))]
#[inline(always)]
pub const fn mutated(_: Mutation) -> bool {
    false
}
