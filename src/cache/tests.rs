mod bounds;
mod fake;
mod faults;
mod interleavings;
mod reading;
mod restart;
mod streams;
