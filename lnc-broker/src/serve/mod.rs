//! What clients ask for, one file for each kind of request.

pub(crate) mod admin;
pub(crate) mod costs;
pub(crate) mod fetch;
pub(crate) mod offsets;
pub(crate) mod passed_on;
pub(crate) mod produce;
pub(crate) mod topic_changes;
