//! The certificate authority: root role and node role.

fn main() {}
