//! Compares the bytes of the mandate extension with what was ordered.

use bonafide_proto::grant::Mandate;

use super::program::Rest;

/// Whether these bytes are exactly this mandate, in canonical DER; else which item is not.
pub(super) fn same(der: &[u8], ordered: &Mandate) -> Result<(), &'static str> {
    if ordered.number == 0 || i64::try_from(ordered.number).is_err() {
        return Err("its number is out of range");
    }
    let mut outer = Rest(der);
    let mut inner = Rest(outer.take(0x30).ok_or("it is not one sequence")?);
    outer.nothing("it is not one sequence")?;
    let number = inner.take(0x02).ok_or("the number is missing")?;
    let bits = 65 - ordered.number.leading_zeros();
    let shortest = number.len() == usize::try_from(bits.div_ceil(8)).unwrap_or(0);
    let read = number.iter().fold(0u128, |read, byte| (read << 8) | u128::from(*byte));
    if !shortest || read != u128::from(ordered.number) {
        return Err("another number");
    }
    let mut workloads = Rest(inner.take(0x30).ok_or("the workloads are missing")?);
    for pattern in ordered.grant.patterns() {
        workloads.expect(0x0c, pattern.as_bytes(), "other workloads")?;
    }
    workloads.nothing("other workloads")?;
    inner.nothing("it says more than was ordered")
}
