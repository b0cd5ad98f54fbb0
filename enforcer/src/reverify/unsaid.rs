//! How long identityd may be unable to say who a program is: a while, for a machine may be busy, and not for ever, for
//! that may be the program's own doing.

use std::time::Duration;

use tokio::time::Instant;

/// So many answers that say nothing,
const ANSWERS: u32 = 3;
/// over at least so long a time, are one that says enough.
const TIME: Duration = Duration::from_secs(10);

/// Answers in a row that said nothing.
#[derive(Debug, Default)]
pub(super) struct Unsaid {
    answers: u32,
    since: Option<Instant>,
}

impl Unsaid {
    /// One more, to a question of that time; whether they are too many by now.
    pub(super) fn too_often(&mut self, asked: Instant, now: Instant) -> bool {
        self.answers = self.answers.saturating_add(1);
        let since = *self.since.get_or_insert(asked);
        self.answers >= ANSWERS && now.saturating_duration_since(since) >= TIME
    }

    /// Nobody was there to say anything.
    pub(super) fn forget(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_answers_in_a_moment_and_one_long_silence_are_borne() {
        let (mut unsaid, start) = (Unsaid::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        for _ in 0..100 {
            assert!(!unsaid.too_often(at(0), at(9)));
        }
        assert!(unsaid.too_often(at(9), at(10)));
        unsaid.forget();
        assert!(!unsaid.too_often(at(10), at(100)));
        assert!(!unsaid.too_often(at(100), at(105)));
        assert!(unsaid.too_often(at(105), at(110)));
    }
}
