//! bonafide, what an operator types.

fn main() {}
