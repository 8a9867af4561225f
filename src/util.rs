//! What every floor may use and none is about: locks that outlive a panic.

mod lock;

pub(crate) use lock::locked;
