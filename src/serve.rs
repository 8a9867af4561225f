//! The tree as a registry: requests of registry clients in, answers out.
//!
//! It speaks the distribution specification 1.1 over HTTP/1.1 and HTTP/2. A request goes this way:
//!
//! ```text
//! server      accepts connections; connection.rs watches how long each keeps us waiting
//! service     who asks (access.rs) and what for (route.rs), which function knows, and the log of it; incoming.rs has
//!             the bodies of requests
//! names       which repository a name means
//! manifests, blobs, uploads, lists
//!             one kind of request each; range.rs reads ranges, body.rs sends parts of blobs, reply.rs errors
//! state       where content is: in the tree, or through an upstream (through.rs, upstream.rs)
//! tree        what is served: a directory or a bucket; index.rs is what is in a repository
//! ```
//!
//! # What it promises
//!
//! - What is stored is given out byte for byte. Nobody gets the end of something wrong: what is not known to be
//!   right is hashed before its last block goes out, and a wrong end is a broken connection.
//! - It stands on the tree alone. The index of a repository is derived from its files, and is compared with them at
//!   every request; what other commands do beside it counts at once.
//! - Nothing is named before it is whole, and what a client was told to be here is here after `kill -9`.
//! - The lock of the tree is held for a write and not for life, so that `imgfs prune` can run; what a client has
//!   brought and not yet named is spared by it.
//! - What comes through an upstream is fetched once for all who ask at the time. What was pushed is never asked for
//!   at an upstream, and starting needs none.
//! - Memory, connections, and the time that each client may take are bounded.

mod access;
mod blobs;
mod body;
mod connection;
mod counts;
mod endpoint;
mod incoming;
mod index;
mod listen;
mod lists;
mod log;
mod manifests;
mod names;
mod range;
mod reload;
mod reply;
mod route;
mod sendfile;
mod server;
mod service;
mod sparse;
mod state;
mod stream;
mod through;
mod tls;
mod tree;
mod uploads;
mod upstream;

pub use access::AccessSettings;
pub use endpoint::MetricsEndpoint;
pub use listen::{Address, AddressError};
pub use server::{Images, Server, Settings, StartError};
pub use tls::TlsFiles;
pub use upstream::UpstreamSpec;

/// Entry points of the fuzz targets to parsers that nobody else may call.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    /// Feeds `bytes` to everything that reads what clients send.
    pub fn request(bytes: &[u8]) {
        super::tls::fuzz(bytes);
        let Ok(text) = std::str::from_utf8(bytes) else { return };
        super::range::fuzz(text);
        super::access::fuzz(text);
        let _ = super::route::Route::parse(text);
        let query = super::route::Query::parse(Some(text));
        let namespace = query.get("ns");
        if let Ok(names) = super::names::Names::new("registry.local", Some("docker.io"))
            && let Ok(named) = names.parse(text, namespace)
        {
            assert!(!named.repository.to_string().contains(".."));
        }
    }
}
