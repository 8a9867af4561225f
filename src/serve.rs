//! The tree as a registry: requests of registry clients in, answers out.

mod endpoint;
mod listen;

pub use endpoint::MetricsEndpoint;
pub use listen::{Address, AddressError};
