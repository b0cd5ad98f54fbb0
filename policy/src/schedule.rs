//! Rules that allow at certain hours of the week only. Hours are UTC: they mean the same on every node, and on no day of the
//! year is one of them missing.

use std::fmt;

use crate::fault::{Faults, quoted};
use crate::rule::Action;
use crate::table::{Table, Text};

const SCHEDULE: &str = "schedule";
const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
/// In minutes.
const DAY: u16 = 24 * 60;
const WEEK: u16 = 7 * DAY;
/// The most windows of one rule.
const WINDOWS_MAX: usize = 32;
/// 1970-01-01 was a Thursday: so many minutes of its week had passed.
const EPOCH: i64 = 3 * 24 * 60;

/// Minutes of the week from `from` on and before `until`, from Monday 00:00 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Window {
    from: u16,
    until: u16,
}

/// When a rule allows what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Schedule {
    windows: Vec<Window>,
    /// As it is written.
    text: String,
}

impl Schedule {
    /// Whether it allows at this time, unix seconds.
    pub(crate) fn covers(&self, now: i64) -> bool {
        let minute = minute_of_week(now);
        self.windows.iter().any(|window| (window.from..window.until).contains(&minute))
    }

    /// When it next begins or ends to allow, unix seconds: always within a week.
    pub(crate) fn next_change(&self, now: i64) -> i64 {
        let minute = minute_of_week(now);
        let begun = now.saturating_sub(now.rem_euclid(60));
        let edges = self.windows.iter().flat_map(|window| [window.from, window.until % WEEK]);
        let ahead = |edge: u16| match (edge + WEEK - minute) % WEEK {
            0 => WEEK,
            minutes => minutes,
        };
        let minutes = edges.map(ahead).min().unwrap_or(WEEK);
        begun.saturating_add(i64::from(minutes) * 60)
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn minute_of_week(now: i64) -> u16 {
    let minute = (now.div_euclid(60).saturating_add(EPOCH)).rem_euclid(i64::from(WEEK));
    u16::try_from(minute).unwrap_or_default()
}

/// A time as schedules write it.
pub(crate) fn shown(now: i64) -> String {
    let minute = minute_of_week(now);
    let day = DAYS.get(usize::from(minute / DAY)).copied().unwrap_or_default();
    format!("{day} {:02}:{:02}", minute % DAY / 60, minute % 60)
}

/// Reads the `schedule` of a rule; `Some(None)` where nothing is written, `None` if there is a mistake, which was reported.
pub(crate) fn read(table: &Table<'_>, action: Option<Action>, faults: &mut Faults<'_>) -> Option<Option<Schedule>> {
    if table.get(SCHEDULE).is_none() {
        return Some(None);
    }
    let texts = table.texts(SCHEDULE, faults)?;
    if action == Some(Action::Deny) {
        let opens = "a denial that pauses would open what it closed";
        faults.wrong(table.place(SCHEDULE), format!("only rules that allow have a schedule: {opens}; remove it"));
        return None;
    }
    if texts.is_empty() || texts.len() > WINDOWS_MAX {
        faults.wrong(table.place(SCHEDULE), format!("a schedule has 1 to {WINDOWS_MAX} windows, not {}", texts.len()));
        return None;
    }
    let read: Vec<Option<Vec<Window>>> = texts.iter().map(|text| windows(*text, faults)).collect();
    let windows = read.into_iter().collect::<Option<Vec<_>>>()?.concat();
    let text = texts.iter().map(|text| text.value).collect::<Vec<_>>().join(", ");
    Some(Some(Schedule { windows, text }))
}

fn windows(text: Text<'_>, faults: &mut Faults<'_>) -> Option<Vec<Window>> {
    let understood = parse(text.value);
    if understood.is_none() {
        let right = "write days and hours of UTC, like \"Mon-Fri 08:00-18:00\"; over midnight, write two";
        faults.wrong(text.at, format!("{} is no part of a week; {right}", quoted(text.value)));
    }
    understood
}

fn parse(text: &str) -> Option<Vec<Window>> {
    let (days, hours) = text.split_once(' ')?;
    let day = |name: &str| DAYS.iter().position(|day| *day == name);
    let (first, last) = match days.split_once('-') {
        Some((first, last)) => (day(first)?, day(last)?),
        None => (day(days)?, day(days)?),
    };
    let (from, until) = hours.split_once('-')?;
    let (from, until) = (minute(from)?, minute(until)?);
    if from >= until || first > last {
        return None;
    }
    (first..=last)
        .map(|day| {
            let midnight = u16::try_from(day).ok()?.checked_mul(DAY)?;
            Some(Window { from: midnight + from, until: midnight + until })
        })
        .collect()
}

/// `00:00` to `24:00`.
fn minute(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    let two = |digits: &str| {
        let plain = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_digit());
        plain.then(|| digits.parse::<u16>().ok()).flatten()
    };
    let all = two(hour)?.checked_mul(60)?.checked_add(two(minute).filter(|minute| *minute < 60)?)?;
    (all <= DAY).then_some(all)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Policy, Subject, Verdict};

    /// Friday, 2027-01-15T08:00:00Z.
    const FRIDAY: i64 = 1_800_000_000;
    const HOUR: i64 = 3600;

    fn policy(more: &str) -> Result<Policy, String> {
        let text =
            "mode = 'enforce'\n[[workload]]\nname = 'a'\nexe = '/a'\n[[rule]]\nname = 'r'\nfrom = 'a'\nto = 'a'\n";
        Policy::parse("p", &format!("{text}ports = [80]\n{more}\n")).map_err(|e| e.to_string())
    }

    fn decided(policy: &Policy, now: i64) -> (Verdict, Option<i64>) {
        let policy = policy.clone().at(now);
        let a = "a".parse().unwrap();
        (policy.decide(&Subject::Workload(&a), &Subject::Workload(&a), 80), policy.next_change())
    }

    #[test]
    fn a_rule_allows_in_its_hours_and_says_which_they_are() {
        let policy = policy("action = 'allow'\nschedule = ['Mon-Fri 08:00-18:00', 'Sun 23:00-24:00']").unwrap();
        assert!(!decided(&policy, FRIDAY - 1).0.is_allow() && decided(&policy, FRIDAY).0.is_allow());
        assert_eq!(decided(&policy, FRIDAY).1, Some(FRIDAY + 10 * HOUR));
        let (evening, next) = decided(&policy, FRIDAY + 10 * HOUR);
        let near = "rule \"r\" would, but for schedule: expected Mon-Fri 08:00-18:00, Sun 23:00-24:00, seen Fri 18:00";
        assert_eq!(evening.to_string(), format!("denied: no rule allows it; {near}"));
        assert_eq!(next, Some(FRIDAY + 63 * HOUR), "Sunday, 23:00");
        assert_eq!(decided(&policy, FRIDAY + 63 * HOUR).1, Some(FRIDAY + 64 * HOUR));
        assert!(!decided(&policy, FRIDAY + 64 * HOUR).0.is_allow());
    }

    #[test]
    fn it_expires_all_the_same_and_who_says_no_time_gets_nothing() {
        let policy = policy("action = 'allow'\nschedule = 'Fri 08:00-18:00'\nexpires = 2027-01-15T09:00:00Z").unwrap();
        assert_eq!(decided(&policy, FRIDAY).1, Some(FRIDAY + HOUR));
        assert!(!decided(&policy, FRIDAY + HOUR).0.is_allow());
        let a = "a".parse().unwrap();
        assert!(!policy.decide(&Subject::Workload(&a), &Subject::Workload(&a), 80).is_allow());
    }

    #[test]
    fn what_is_no_part_of_a_week_is_refused() {
        for wrong in [
            "Mon",
            "08:00-18:00",
            "Mon 18:00-08:00",
            "Mon 8:00-18:00",
            "Fri-Mon 08:00-09:00",
            "Mon 08:60-09:00",
            "Mon 00:00-24:01",
            "mon 08:00-09:00",
            "Mon 08:00-08:00",
            "Mon  08:00-09:00",
            "Mon +8:00-09:00",
            "",
        ] {
            let refused = policy(&format!("action = 'allow'\nschedule = '{wrong}'")).unwrap_err();
            assert!(refused.contains("is no part of a week") && refused.lines().count() == 1, "{wrong}: {refused}");
        }
        let denial = policy("action = 'deny'\nschedule = 'Mon 08:00-09:00'").unwrap_err();
        assert!(denial.contains("only rules that allow have a schedule"), "{denial}");
        assert!(policy("action = 'allow'\nschedule = 7").unwrap_err().contains("schedule must be"));
    }

    proptest! {
        #[test]
        fn it_changes_at_the_next_change_and_not_before(
            starts in proptest::collection::vec((0..7_usize, 0..1440_u16, 1..1440_u16), 1..4),
            now in 0..4_000_000_000_i64,
        ) {
            let clock = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
            let windows = starts.iter().map(|(day, from, length)| {
                let until = from.saturating_add(*length).min(1440);
                format!("{} {}-{}", DAYS[*day], clock(*from), clock(until))
            });
            let windows: Vec<Window> = windows.flat_map(|text| parse(&text).unwrap()).collect();
            let schedule = Schedule { windows, text: String::new() };
            let (covers, next) = (schedule.covers(now), schedule.next_change(now));
            prop_assert!(now < next && next <= now + 7 * 86_400);
            prop_assert_eq!(schedule.covers(next - 1), covers);
            let mut minute = now - now % 60;
            while minute < next {
                prop_assert_eq!(schedule.covers(minute.max(now)), covers);
                minute += 60;
            }
        }
    }
}
