//! What the fuzz targets of all crates share: variations on seeds, and the DER that seeds are made of. For tests alone.

pub use bolero;

/// Where a seed is changed, and to what: which seed, from where, how much goes, what comes instead.
pub type Edit = (u8, u16, u16, Vec<u8>);

/// A seed with a piece of it replaced.
#[must_use]
pub fn spliced<S: AsRef<[u8]>>(seeds: &[S], (which, at, cut, noise): &Edit) -> Vec<u8> {
    let seed = seeds.get(usize::from(*which) % seeds.len().max(1)).map(AsRef::as_ref).unwrap_or_default();
    let (before, rest) = seed.split_at(usize::from(*at) % (seed.len() + 1));
    let after = rest.get(usize::from(*cut) % (rest.len() + 1)..).unwrap_or_default();
    [before, noise, after].concat()
}

/// Holds a property against seeds, and against variations of them: for two seconds, if nobody says otherwise.
///
/// A macro, since bolero tells targets apart by where they stand.
#[macro_export]
macro_rules! fuzz {
    ($seeds:expr, $property:expr) => {{
        let seeds = $seeds;
        let property: fn(&[u8]) = $property;
        seeds.iter().for_each(|seed| property(seed.as_ref()));
        $crate::bolero::check!()
            .with_type::<$crate::Edit>()
            .with_iterations(1_000_000)
            .with_test_time(::std::time::Duration::from_secs(2))
            .for_each(|edit| property(&$crate::spliced(&seeds, edit)));
    }};
}

/// A DER element with a length of one, two or three bytes.
#[must_use]
pub fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let [_, _, _, _, _, _, high, low] = content.len().to_be_bytes();
    let header: &[u8] = match (high, low) {
        (0, 0..0x80) => &[tag, low],
        (0, _) => &[tag, 0x81, low],
        _ => &[tag, 0x82, high, low],
    };
    [header, content].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edit_takes_one_piece_away_and_puts_another_there() {
        assert_eq!(spliced(&[b"abcdef", b"ghijkl"], &(1, 2, 3, b"XY".to_vec())), b"ghXYl");
        assert_eq!(spliced(&[b"ab"], &(9, 2, 7, b"c".to_vec())), b"abc");
        assert_eq!(spliced::<Vec<u8>>(&[], &(1, 1, 1, b"c".to_vec())), b"c");
    }

    #[test]
    fn elements_have_the_shortest_length() {
        assert_eq!(element(4, &[7; 2]), [4, 2, 7, 7]);
        let headers = [127, 128, 255, 256].map(|length| element(4, &vec![0; length])[..4].to_vec());
        assert_eq!(headers, [[4, 127, 0, 0], [4, 0x81, 128, 0], [4, 0x81, 255, 0], [4, 0x82, 1, 0]]);
    }
}
