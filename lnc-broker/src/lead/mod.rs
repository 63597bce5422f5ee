//! Who leads, who is a member, and what a leader sees to.

pub(crate) mod followers;
pub(crate) mod formats;
pub(crate) mod leadership;
pub(crate) mod membership;
pub(crate) mod peers;
pub(crate) mod readiness;
pub(crate) mod slow_disk;
