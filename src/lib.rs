//! imgfs: container images as a file tree.
//!
//! The floors, from the ground up. An upper floor may use any lower one, never the other way
//! round; `tests/it/floors.rs` checks it.
//!
//! | floor | what it knows |
//! |---|---|
//! | `cli` (in the binary) | arguments, output, exit statuses |
//! | [`task`] | KubeKey's tasks: what to transfer, under which names, in which order |
//! | [`rootfs`] | images from the inside: their files, read where they are |
//! | [`transfer`] | what to copy from one tree to another, in which order, and how it went |
//! | [`cache`] | parts of blobs that are read through a mount |
//! | [`layer`] | what is inside the blobs of layers |
//! | [`backend`] | where images are: registries, KubeKey's `images_dir` |
//! | [`template`] | texts with values in them: Go's templates and Tera's |
//! | [`image`] | what images are: references, digests, platforms, manifests |

pub mod backend;
pub mod cache;
pub mod catalogue;
pub mod fuse;
pub mod image;
pub mod layer;
pub mod namespace;
pub mod rootfs;
pub mod task;
pub mod template;
pub mod transfer;
pub mod util;
