//! Rules that end by themselves. Only allowing ones do: a denial that ended would open what it closed.

use std::fmt;

use time::{Date, Month, OffsetDateTime, Time};
use toml::value::Datetime;

use crate::fault::Faults;
use crate::rule::Action;
use crate::table::Table;

const EXPIRES: &str = "expires";

/// A moment, unix seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Expiry(pub(crate) i64);

/// Reads the `expires` of a rule; `Some(None)` where nothing is written, `None` if there is a mistake, which was reported.
pub(crate) fn read(table: &Table<'_>, action: Option<Action>, faults: &mut Faults<'_>) -> Option<Option<Expiry>> {
    let Some(value) = table.get(EXPIRES) else { return Some(None) };
    let at = value.span().start;
    let Some(written) = value.get_ref().as_datetime() else {
        table.wrong_type(EXPIRES, "a date with a time and an offset, without quotes", value, faults);
        return None;
    };
    let Some(expiry) = moment(written) else {
        let right = "write the date, the time and the offset from UTC, like 2027-01-31T18:00:00Z";
        faults.wrong(at, format!("{written} is no moment; {right}"));
        return None;
    };
    if action == Some(Action::Deny) {
        let opens = "a denial that ends by itself would open what it closed";
        faults.wrong(at, format!("only rules that allow expire: {opens}; remove expires"));
        return None;
    }
    Some(Some(expiry))
}

/// A moment, which is the same everywhere: local times are none.
pub(crate) fn moment(written: &Datetime) -> Option<Expiry> {
    let (date, clock, offset) = (written.date?, written.time?, written.offset?);
    let month = Month::try_from(date.month).ok()?;
    let date = Date::from_calendar_date(i32::from(date.year), month, date.day).ok()?;
    let clock = Time::from_hms(clock.hour, clock.minute, clock.second.unwrap_or_default()).ok()?;
    let minutes = match offset {
        toml::value::Offset::Z => 0,
        toml::value::Offset::Custom { minutes } => minutes,
    };
    Some(Expiry(date.with_time(clock).assume_utc().unix_timestamp() - i64::from(minutes) * 60))
}

impl fmt::Display for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match OffsetDateTime::from_unix_timestamp(self.0) {
            Ok(t) => {
                let (date, clock) = (t.date(), t.time());
                let (hour, minute, second) = clock.as_hms();
                write!(f, "{date}T{hour:02}:{minute:02}:{second:02}Z")
            }
            Err(_) => write!(f, "unix time {}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{Policy, Subject, Verdict};

    const BEFORE: i64 = 1_800_000_000;

    fn policy(rules: &str) -> Policy {
        let workloads = "[[workload]]\nname = 'a'\nexe = '/a'\n[[workload]]\nname = 'b'\nexe = '/b'\n\
                         [[group]]\nname = 'both'\nmembers = ['a', 'b']\n";
        Policy::parse("p", &format!("mode = 'enforce'\n{workloads}{rules}")).unwrap_or_else(|e| panic!("{e}"))
    }

    fn rule(name: &str, from: &str, more: &str) -> String {
        format!("[[rule]]\nname = '{name}'\nfrom = '{from}'\nto = 'b'\nports = [80]\n{more}\n")
    }

    fn decided(policy: &Policy) -> Verdict {
        let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
        policy.decide(&Subject::Workload(&a), &Subject::Workload(&b), 80)
    }

    #[test]
    fn a_rule_allows_until_its_moment_and_says_so_afterwards() {
        // 1800000000 is 2027-01-15T08:00:00Z.
        for expires in ["2027-01-15T08:00:01Z", "2027-01-15T10:30:01+02:30", "2027-01-15 07:00:01-01:00"] {
            for from in ["a", "both"] {
                let text = rule("r", from, &format!("action = 'allow'\nexpires = {expires}"));
                let policy = policy(&text);
                let (before, after) = (policy.clone().at(BEFORE), policy.clone().at(BEFORE + 1));
                assert_eq!(decided(&before).rule(), Some("r"), "{text}");
                assert_eq!((before.next_change(), after.next_change()), (Some(BEFORE + 1), None));
                let said = decided(&after).to_string();
                let near =
                    "rule \"r\" would, but for expires: expected a time before 2027-01-15T08:00:01Z, seen a later one";
                assert_eq!(said, format!("denied: no rule allows it; {near}"));
                let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
                assert!(before.may_reach(&a, &b) && !after.may_reach(&a, &b));
                assert!(before.may_reach_mesh(&a) && !after.may_reach_mesh(&a));
            }
        }
    }

    #[test]
    fn who_does_not_say_what_time_it_is_gets_nothing_that_expires() {
        let policy = policy(&rule("r", "a", "action = 'allow'\nexpires = 9999-12-31T23:59:59Z"));
        assert!(!decided(&policy).is_allow());
        assert!(decided(&policy.at(BEFORE)).is_allow());
    }

    #[test]
    fn what_stands_below_an_expired_rule_decides() {
        let first = rule("first", "a", "action = 'allow'\nexpires = 2027-01-15T08:00:01Z");
        let policy = policy(&format!("{first}{}", rule("second", "a", "action = 'deny'")));
        assert!(decided(&policy.clone().at(BEFORE)).is_allow());
        assert_eq!(decided(&policy.at(BEFORE + 9)).rule(), Some("second"));
    }

    #[test]
    fn what_is_no_moment_and_denials_that_end_are_refused() {
        for (more, said) in [
            (
                "action = 'allow'\nexpires = 2027-01-15",
                "2027-01-15 is no moment; write the date, the time and the offset",
            ),
            ("action = 'allow'\nexpires = 2027-01-15T08:00:00", "2027-01-15T08:00:00 is no moment"),
            ("action = 'allow'\nexpires = 08:00:00", "08:00:00 is no moment"),
            ("action = 'allow'\nexpires = '2027-01-15T08:00:00Z'", "expires must be a date with a time and an offset"),
            ("action = 'deny'\nexpires = 2027-01-15T08:00:00Z", "only rules that allow expire"),
        ] {
            let text = format!("mode = 'enforce'\n[[workload]]\nname = 'b'\nexe = '/b'\n{}", rule("r", "b", more));
            let errors = Policy::parse("p", &text).unwrap_err().to_string();
            assert!(errors.contains(said) && errors.lines().count() == 1, "{errors}");
        }
    }
}
