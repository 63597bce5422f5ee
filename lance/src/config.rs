//! The node's configuration: read from layers, validated once, trusted ever after.
//!
//! Later layers win: built-in defaults, the TOML file, environment variables `LANCE_SECTION__KEY` (so `LANCE_NODE__ID`
//! is `node.id`), flags. Each key stands once in the table of [`schema`], which makes the struct, the checks, the
//! suggestions for misspelt keys and the commented default file. [`Config::load`] reports every problem it finds,
//! each with the key, the value, what is allowed and where the value came from.
//!
//! ```
//! use lance::config::{Config, Sources};
//!
//! let config = Config::load(&Sources::default().set("journal.file_bytes", "32MiB", "--set")).unwrap();
//! assert_eq!(config.journal.file_bytes, 32 << 20);
//!
//! let error = Config::load(&Sources::default().set("raft.tick", "5", "--set")).unwrap_err();
//! assert_eq!(error.to_string(), "unknown key `raft.tick` (from --set); did you mean `raft.tick_ms`?");
//! ```

mod error;
mod kinds;
mod memory;
mod schema;
mod source;
mod template;
pub mod units;
mod validate;

pub use error::{ConfigError, Problem};
pub use kinds::{Address, BackendChoice, LogFormat, LogLevel, Url};
pub use schema::{
    Advertise, Cluster, Config, Journal, Limits, Listen, Log, Node, NodeAddresses, Raft, Shutdown, Storage, Tracing,
};
pub use source::{Origin, Sources};
pub use template::default_toml;

impl Config {
    /// Reads all layers, checks every value and every relation between values.
    ///
    /// # Errors
    /// All problems at once, so that one run is enough to mend a file.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        let given = source::read(sources, &mut problems);
        let config = schema::build(&given, &mut problems);
        let checked = config.map(|config| validate::check(config, &given, &mut problems));
        match checked {
            Some(config) if problems.is_empty() => Ok(config),
            _ => Err(ConfigError::new(problems)),
        }
    }

    /// This node's own entry in the list of nodes.
    pub fn this_node(&self) -> &NodeAddresses {
        self.cluster.nodes.iter().find(|node| node.id == self.node.id).expect("validated: this node is listed")
    }
}

impl Default for Config {
    /// A cluster of one node on loopback, storing under `lance-data`.
    fn default() -> Self {
        Self::load(&Sources::default()).expect("the built-in defaults are valid")
    }
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
