//! Integration tests: the `imgfs` binary against real registries, real images and hostile peers.

#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

mod answers;
mod auth;
mod bad_input;
mod concurrent;
mod connections;
mod copy;
mod diff;
mod disk_full;
mod faults;
mod floors;
mod kill;
mod links;
mod listing;
mod login;
mod logs;
mod manual;
mod mount;
mod mount_access;
mod mount_cache;
mod mount_chaos;
mod mount_errors;
mod mount_holes;
mod mount_life;
mod mount_names;
mod mount_offline;
mod mount_sources;
mod names;
mod papers;
mod portable;
mod pull;
mod push;
mod push_faults;
mod push_wire;
mod reach;
mod regressions;
mod render;
mod rootfs;
mod rootfs_hostile;
mod rootfs_image;
mod rootfs_memory;
mod rootfs_reads;
mod rootfs_real;
mod rootfs_toc;
mod run;
mod selftest;
mod selftest_harbor;
mod selftest_layers;
mod selftest_push;
mod selftest_push_faults;
mod tasks;
mod tls;
mod trees;
