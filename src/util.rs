//! What every floor may use and none is about: reading without waiting for the disk, locks that outlive a panic, work that is done once for all who
//! need it, how many connections are worth having, the memory that a process may take, and counts of what it does.

mod budget;
mod buffer;
mod file;
mod lock;
mod metrics;
mod parallelism;
mod single_flight;
mod socket;
mod text;

pub use budget::{Budget, BudgetStats, OutOfMemory};
pub(crate) use budget::{Counted, Kept, Reservation};
pub(crate) use buffer::{filled, joined};
pub use file::directory_of;
pub(crate) use file::{FileId, read_at_most, read_cached, read_part, write_whole};
pub(crate) use lock::locked;
pub use metrics::{
    Counter, Counters, Gauge, Gauges, Histogram, Histograms, Labels, METRICS_TYPE, Metrics,
};
pub(crate) use parallelism::Parallelism;
pub(crate) use single_flight::{Died, Flight, SingleFlight};
pub use socket::LocalListener;
pub use text::disturbs;
pub(crate) use text::drop_repeats;
