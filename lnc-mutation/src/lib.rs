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
    NoDirectorySync = "no-directory-sync", "the name of a new checkpoint is not synced";
    ForgetDuplicates = "forget-duplicates", "a checkpoint forgets what producers have sent";
    AcceptDuplicates = "accept-duplicates", "a repeated batch is appended again";
    WipedVotes = "wiped-votes", "a node with an empty disk takes its former place";
    KeepFewerFiles = "keep-fewer-files", "journal files are freed before the checkpoint that covers them is durable";
    BelieveOwnClock = "believe-own-clock", "a leader removes by age by its own clock, whatever the others say";
    JointNewOnly = "joint-new-only", "only the new voters decide while both sets should";
    JointOldOnly = "joint-old-only", "only the old voters decide while both sets should";
    LeaveJointEarly = "leave-joint-early", "a joint configuration is left before it is committed";
    KeepCutMembers = "keep-cut-members", "the members of an entry that is cut off stay in effect";
    CountLearners = "count-learners", "learners count for majorities";
    PromoteEarly = "promote-early", "a learner votes before it has caught up";
    ReadAnyRound = "read-any-round", "reads are confirmed by the answer to any heartbeat";
    ReadOldRound = "read-old-round", "reads are confirmed by a round that was begun before them";
    ReadEarlierTerm = "read-earlier-term", "a leader answers reads before it has committed in its term";
    ReadUnapplied = "read-unapplied", "reads are answered before what is committed is applied";
    ReadLocally = "read-locally", "reads that must be fresh are answered without asking";
    DenyUnconfirmed = "deny-unconfirmed", "an offset is denied by a node that may merely be behind";
    VoteTwice = "vote-twice", "a second candidate gets a vote in the same term";
    VoteEarly = "vote-early", "a vote leaves before it is durable";
    AppendUnmatched = "append-unmatched", "entries are appended behind one of another term";
    CommitUnmatched = "commit-unmatched", "the commit index of an append is believed for entries that may differ";
    AcknowledgeUnmatched = "acknowledge-unmatched", "a follower acknowledges entries that its leader may not have";
    FlushOutOfOrder = "flush-out-of-order", "a flush counts as durable before those ahead of it";
    CheckpointUnsynced = "checkpoint-unsynced", "a checkpoint takes its name before its bytes are durable";
    CheckpointEarly = "checkpoint-early", "a checkpoint is made before the segments that it names are durable";
    RemoveEarly = "remove-early", "segments are removed while a checkpoint names them";
    RemoveLate = "remove-late", "where space is short, what is deleted stays until a checkpoint does not name it";
    KeepWhatGoes = "keep-what-goes", "state that comes has to fit beside what it has nothing of any more";
    VoteWhileLacking = "vote-while-lacking", "a group takes part without the entries that it lost";
    KeepReplacedLog = "keep-replaced-log", "the log from before a transfer of state is kept behind it";
    TrimEarly = "trim-early", "records are removed at half of their age";
    ForgetTheNewest = "forget-the-newest", "where there are too many producers, those that wrote last are forgotten";
    ShortWindow = "short-window", "of the last five batches only four are recognised";
    IgnoreEpochs = "ignore-epochs", "a batch of an earlier epoch is taken";
    AcceptGaps = "accept-gaps", "a batch is taken before those that precede it";
    AcceptStrangers = "accept-strangers", "an unknown producer may begin anywhere";
    ForgetProducerIds = "forget-producer-ids", "a checkpoint forgets which producer ids were given out";
    RepeatAnything = "repeat-anything", "what a former leader may have is passed on to the next one, a sequence or not";
    DeletedEarly = "deleted-early", "a deletion is answered before the partitions are gone";
    LeaderAcksEarly = "leader-acks-early", "acks=leader is answered before the leader's disk has the record";
    DenyProposed = "deny-proposed", "a batch that may still be committed is said not to be";
    DenyLate = "deny-late", "a batch whose time is up is said not to be committed";
    TakeTooMuch = "take-too-much", "requests are taken beyond the memory for them";
    IgnoreMark = "ignore-mark", "a start does not ask the mark what the journal had";
    VoteInDoubt = "vote-in-doubt", "a group that may lack what it acknowledged votes all the same";
    ForgetDoubt = "forget-doubt", "a restart forgets that a group may lack what it acknowledged";
    AcceptOtherMark = "accept-other-mark", "a mark of another node is believed";
    AcceptOtherCheckpoint = "accept-other-checkpoint", "a start takes a checkpoint of another node for its own";
    AcceptOtherJournal = "accept-other-journal", "a journal file of another node counts as one without flushes";
    IgnoreDigests = "ignore-digests", "a read does not ask whether batches are those of this segment";
    NeverWrap = "never-wrap", "the sequence numbers of a producer do not begin at 0 again";
    GiveTooMuch = "give-too-much", "a fetch is given twice the bytes that it asks for";
    RepairAtOnce = "repair-at-once", "a place that stays bad is repaired again and again without a pause";
    KeepOffice = "keep-office", "a leader whose entries do not arrive goes on";
    WaitForNobody = "wait-for-nobody", "clients are not slowed down for a follower that lives and falls behind";
    FormAlone = "form-alone", "a fresh node does not wait for the others to form a cluster";
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
