//! A snapshotter of containerd, as a proxy plugin: requests of containerd in, answers out. All of tonic is in here.
//!
//! ```text
//! Snapshotter   the ten calls, as plain values (`service.rs`)
//!   lazy          layers that need not be fetched, since a mount shows them (`lazy.rs`)
//!   state         snapshots, and what is kept of them on the disk (`state.rs`)
//!   filter        containerd's filters (`filter.rs`)
//! serve         the calls over gRPC on a socket (`transport.rs`, `messages.rs`)
//!   cri           Kubernetes' image service, passed on to containerd, for the credentials in it (`cri.rs`)
//! ```
//!
//! containerd asks for a snapshot before it fetches a layer, and says in labels which one
//! (`containerd.io/snapshot.ref` and `containerd.io/snapshot/cri.*`). For a layer that can be shown, the answer is
//! that it exists already: then containerd looks for the committed snapshot with that label, and fetches nothing.
//! Its files are the merge of all layers up to it in a mount, so that a container has one directory below its own.
//! Everything else is a snapshot as any other of overlayfs, in a directory of ours.
//!
//! Whatever goes wrong before a layer is said to exist means that containerd fetches it, and is logged.

mod cri;
mod filter;
mod lazy;
pub mod messages;
mod service;
mod setup;
mod state;
mod transport;

#[cfg(feature = "fuzzing")]
pub use filter::fuzz_filter;
pub use service::{Snapshotter, SnapshotterOptions};
pub use setup::{Runtime, setup};
pub use transport::serve;

/// Where the snapshotter listens, unless something else is said.
pub const DEFAULT_SOCKET: &str = "/run/imgfs/snapshotter.sock";

/// Where it keeps what it has, unless something else is said.
pub const DEFAULT_ROOT: &str = "/var/lib/imgfs/snapshotter";
