//! bonafide, what an operator types.

pub mod launch;
pub mod node;
