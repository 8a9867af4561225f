mod bounds;
mod fake;
mod faults;
mod reading;
mod restart;
mod streams;
