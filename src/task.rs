//! tmp
mod request;
mod route;
pub use request::*;
pub use route::*;
