//! imgfs: container images as a file tree.
//!
//! The floors, from the top down. Which may use which is drawn in `ARCHITECTURE.md`, and checked by
//! `tests/it/floors.rs`.
//!
//! | floor | what it knows |
//! |---|---|
//! | `cli` (in the binary) | arguments, output, exit statuses |
//! | [`fuse`] | requests of the kernel in, replies out |
//! | [`serve`] | requests of registry clients in, answers out |
//! | [`task`] | KubeKey's tasks: what to transfer, under which names, in which order |
//! | [`ops`] | one function a verb: a request goes in, a report comes out |
//! | [`namespace`] | the files and directories of a mount, as plain values |
//! | [`catalogue`] | what a name leads to, and where its bytes are |
//! | [`transfer`] | what to copy from one backend to another, in which order, and how it went |
//! | [`rootfs`] | images from the inside: their files, read where they are |
//! | [`cache`] | parts of blobs that are read through a mount |
//! | [`backend`] | where images are: registries, KubeKey's `images_dir` |
//! | [`layer`] | what is inside the blobs of layers |
//! | [`template`] | texts with values in them: Go's templates and Tera's |
//! | [`image`] | what images are: references, digests, platforms, manifests |
//! | [`util`] | locks, single flight, the memory budget, metrics |

pub mod backend;
pub mod cache;
pub mod catalogue;
pub mod fuse;
pub mod image;
pub mod layer;
pub mod namespace;
pub mod ops;
pub mod rootfs;
pub mod serve;
pub mod task;
pub mod template;
pub mod transfer;
pub mod util;
