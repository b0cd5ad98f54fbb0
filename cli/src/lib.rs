//! bonafide, what an operator types.
