//! What checkpoints and entries hold: the states of both state machines and of partitions, and commands.

use bytes::{Bytes, BytesMut};
use lnc_broker::catalog::Catalog;
use lnc_broker::command::Commands;
use lnc_broker::partitions::PartitionGroup;
use lnc_log::segment::PartitionState;

/// The first byte says what the others are. What is understood can be said again, and means the same.
pub fn run(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    let mut bytes = Bytes::copy_from_slice(rest);
    let mut again = BytesMut::new();
    match kind % 4 {
        0 => {
            if let Ok(catalog) = Catalog::decode(&mut bytes) {
                catalog.encode(&mut again);
                assert_eq!(Catalog::decode(&mut again.freeze()), Ok(catalog));
            }
        }
        1 => {
            if let Ok(group) = PartitionGroup::decode(&mut bytes) {
                group.encode(&mut again);
                assert_eq!(PartitionGroup::decode(&mut again.freeze()), Ok(group));
            }
        }
        2 => {
            if let Ok(state) = PartitionState::decode(&bytes) {
                assert_eq!(state.encode(), rest);
            }
        }
        _ => {
            if let Ok(commands) = Commands::parse(bytes) {
                assert!(commands.count() <= rest.len() + 1, "no more commands than bytes, and one error");
            }
        }
    }
}
