//! What a cluster of brokers promises, tested on the real broker with virtual time, network, disks and clients.

mod harness;

mod acknowledgement;
mod clocks;
mod corners;
mod costs;
mod failover;
mod formats;
mod full_disks;
mod limits;
mod lost_files;
mod members;
mod metrics;
mod network_faults;
mod other_files;
mod power_loss;
mod random;
mod readers;
mod recovery;
mod repair;
mod replicas;
mod status;
mod topics;
mod traces;
mod unreadable;
