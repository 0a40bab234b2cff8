//! When a schedule is due: an expression, and the zone whose wall clock it is read on.
//!
//! No clock is read here: every question says after which moment it is asked.

use std::sync::Arc;
use std::time::Duration;

use cronexpr::Crontab;
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone, TimeZoneDatabase};
use jiff::{SignedDuration, Timestamp as Instant};

use crate::error::Error;
use crate::limits::{SCHEDULE_EVERY_MAX, SCHEDULE_EXPRESSION_BYTES_MAX, TIME_ZONE_BYTES_MAX};
use crate::time::Timestamp;

/// An expression is not looked for further ahead than this: 29 February comes within it, and years have four digits.
const HORIZON: Instant = Instant::constant(253_000_000_000, 0);

/// How far `cronexpr` looks ahead in one call, less a day.
const SEARCH: SignedDuration = SignedDuration::from_hours(24 * (4 * 365 - 1));
/// So many times that: there are up to 40 years between two leap days of one weekday, around a century without one.
const SEARCHES: usize = 11;

/// A checked expression in a checked zone.
#[derive(Debug, Clone)]
pub(crate) struct Timetable(Arc<Kind>);

#[derive(Debug)]
enum Kind {
    /// Milliseconds, counted from the epoch.
    Every(u64),
    Cron {
        /// Read as if the wall clock was that of UTC, which is never set; what the zone does to it is done here.
        crontab: Crontab,
        zone: TimeZone,
        /// The hour is left open, so that it is due as the hands of the clock go; otherwise the times are named.
        open: bool,
    },
}

impl Timetable {
    /// Reads an expression and a zone.
    pub(crate) fn parse(expression: &str, zone: &str) -> Result<Timetable, Error> {
        let refuse = |what, value: &str, message: String| {
            let value = value.chars().take(64).flat_map(char::escape_debug).collect();
            Error::InvalidSchedule { what, value, message }
        };
        let in_zone = time_zone(zone).map_err(|message| refuse("time zone", zone, message))?;
        let kind = kind(expression, in_zone).map_err(|message| refuse("expression", expression, message))?;
        let timetable = Timetable(Arc::new(kind));
        if timetable.next_after(Timestamp::from_millis(0)).is_none() {
            return Err(refuse("expression", expression, "it is never due".into()));
        }
        Ok(timetable)
    }

    /// The first due time after a moment; `None` in a time that calendars do not reach.
    pub(crate) fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        match &*self.0 {
            Kind::Every(ms) => (after.as_millis() / ms).checked_add(1)?.checked_mul(*ms).map(Timestamp::from_millis),
            Kind::Cron { crontab, zone, open } => {
                let after = instant(after)?;
                let next = if *open { next_open(crontab, zone, after) } else { next_named(crontab, zone, after) };
                let next = next.filter(|next| *next < HORIZON)?;
                u64::try_from(next.as_millisecond()).ok().map(Timestamp::from_millis)
            }
        }
    }
}

fn instant(at: Timestamp) -> Option<Instant> {
    let at = Instant::from_millisecond(i64::try_from(at.as_millis()).ok()?).ok()?;
    (at < HORIZON).then_some(at)
}

fn time_zone(name: &str) -> Result<TimeZone, String> {
    if name.is_empty() || name.len() > TIME_ZONE_BYTES_MAX || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!("a zone's name has 1 to {TIME_ZONE_BYTES_MAX} letters, as in Europe/Berlin"));
    }
    // The system's zones are newer than those that come with us, and not every system has some.
    jiff::tz::db()
        .get(name)
        .or_else(|_| TimeZoneDatabase::bundled().get(name))
        .map_err(|_| "no such time zone; names are those of the IANA database, as Europe/Berlin".into())
}

fn kind(expression: &str, zone: TimeZone) -> Result<Kind, String> {
    if expression.len() > SCHEDULE_EXPRESSION_BYTES_MAX {
        return Err(format!("it has over {SCHEDULE_EXPRESSION_BYTES_MAX} bytes"));
    }
    if let Some(interval) = expression.strip_prefix("@every ") {
        return every(interval.trim()).map(Kind::Every);
    }
    let fields = match expression {
        "@hourly" => "0 * * * *",
        "@daily" | "@midnight" => "0 0 * * *",
        "@weekly" => "0 0 * * 0",
        "@monthly" => "0 0 1 * *",
        "@yearly" | "@annually" => "0 0 1 1 *",
        other => other,
    };
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    let &[_, hour, ..] = fields.as_slice() else {
        return Err("an expression has 5 fields: minute, hour, day of month, month, day of week".into());
    };
    if fields.len() != 5 {
        return Err(format!("an expression has 5 fields, this one {}", fields.len()));
    }
    let crontab = cronexpr::parse_crontab(&format!("{} UTC", fields.join(" "))).map_err(|error| {
        // The text before it shows the expression, which the error has already.
        let text = error.to_string();
        text.lines().last().unwrap_or_default().trim_start_matches([' ', '^']).to_owned()
    })?;
    Ok(Kind::Cron { crontab, zone, open: hour.starts_with('*') })
}

/// A whole number and its unit: `90s`, `5m`, `2h`, `1d`.
fn every(interval: &str) -> Result<u64, String> {
    let wrong = || "an interval is a whole number of s, m, h or d, from 1s to 366d: @every 90s".to_owned();
    let (at, unit) = interval.char_indices().next_back().ok_or_else(wrong)?;
    let unit = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3_600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number = &interval[..at];
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong());
    }
    let secs = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).ok_or_else(wrong)?;
    if secs == 0 || Duration::from_secs(secs) > SCHEDULE_EVERY_MAX {
        return Err(wrong());
    }
    Ok(secs * 1_000)
}

/// The next time of the wall clock that the expression names, whatever sets that clock.
fn next_wall(crontab: &Crontab, after: DateTime) -> Option<DateTime> {
    let mut after = TimeZone::UTC.to_timestamp(after).ok().filter(|at| *at < HORIZON)?;
    for _ in 0..SEARCHES {
        match crontab.find_next(after) {
            Ok(next) => return Some(next.datetime()),
            Err(_) => after = after.checked_add(SEARCH).ok().filter(|at| *at < HORIZON)?,
        }
    }
    None
}

/// Named times: each once a day, at the end of the gap if the clock is set over it, the first time if it comes twice.
///
/// That takes times of the wall clock to moments in order, so the first moment after `after` is the one that is looked for.
fn next_named(crontab: &Crontab, zone: &TimeZone, after: Instant) -> Option<Instant> {
    let mut wall = zone.to_datetime(after);
    loop {
        wall = next_wall(crontab, wall)?;
        let at = moment(zone, wall)?;
        if at > after {
            return Some(at);
        }
    }
}

fn moment(zone: &TimeZone, wall: DateTime) -> Option<Instant> {
    match zone.to_ambiguous_timestamp(wall).offset() {
        AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(wall).ok(),
        AmbiguousOffset::Fold { before, .. } => before.to_timestamp(wall).ok(),
        AmbiguousOffset::Gap { before, .. } => {
            // By the old offset it is as long after the clock was set as it is after the gap's beginning.
            let beyond = before.to_timestamp(wall).ok()?.checked_add(SignedDuration::from_millis(1)).ok()?;
            zone.preceding(beyond).next().map(|set| set.timestamp())
        }
    }
}

/// Every time that the clock shows, as often as it shows it, and none that it does not.
fn next_open(crontab: &Crontab, zone: &TimeZone, after: Instant) -> Option<Instant> {
    let (mut offset, mut from) = (zone.to_offset(after), after);
    let mut wall = offset.to_datetime(after);
    loop {
        // What is not found within decades is not found after the clock was set either, by a day at most.
        let at = offset.to_timestamp(next_wall(crontab, wall)?).ok();
        let set = zone.following(from).next().filter(|set| at.is_none_or(|at| set.timestamp() <= at));
        let Some(set) = set.filter(|set| set.timestamp() < HORIZON) else { return at };
        // The clock is set before that: what it shows from there on counts, beginning with the moment itself.
        (offset, from) = (set.offset(), set.timestamp());
        wall = offset.to_datetime(from).checked_sub(SignedDuration::from_millis(1)).ok()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        let at: Instant = text.parse().expect("a moment");
        Timestamp::from_millis(at.as_millisecond() as u64)
    }

    /// The due times after a moment, as the zone's wall clock shows them.
    fn check(expression: &str, zone: &str, after: &str, expected: &[&str]) {
        let timetable = Timetable::parse(expression, zone).expect("is allowed");
        let zone = time_zone(zone).expect("is known");
        let mut after = at(after);
        let shown: Vec<String> = (0..expected.len())
            .map(|_| {
                after = timetable.next_after(after).expect("is due");
                let zoned = instant(after).expect("in range").to_zoned(zone.clone());
                zoned.strftime("%Y-%m-%d %H:%M:%S%:z").to_string()
            })
            .collect();
        assert_eq!(shown, expected, "{expression}");
    }

    #[test]
    fn named_times_come_once_a_day_over_both_changes_of_the_clock() {
        check(
            "30 2 * * *",
            "Europe/Berlin",
            "2026-03-27T12:00:00Z",
            &["2026-03-28 02:30:00+01:00", "2026-03-29 03:00:00+02:00", "2026-03-30 02:30:00+02:00"],
        );
        check(
            "30 2 * * *",
            "Europe/Berlin",
            "2026-10-24T12:00:00Z",
            &["2026-10-25 02:30:00+02:00", "2026-10-26 02:30:00+01:00"],
        );
        check(
            "30 2 * * *",
            "America/New_York",
            "2026-03-07T12:00:00Z",
            &["2026-03-08 03:00:00-04:00", "2026-03-09 02:30:00-04:00"],
        );
        check(
            "30 1 * * *",
            "America/New_York",
            "2026-10-31T12:00:00Z",
            &["2026-11-01 01:30:00-04:00", "2026-11-02 01:30:00-05:00"],
        );
        // From within the hour that comes twice, on either side.
        check("30 2 * * *", "Europe/Berlin", "2026-10-25T00:30:00Z", &["2026-10-26 02:30:00+01:00"]);
        check("45 2 * * *", "Europe/Berlin", "2026-10-25T00:30:00Z", &["2026-10-25 02:45:00+02:00"]);
        check("45 2 * * *", "Europe/Berlin", "2026-10-25T01:10:00Z", &["2026-10-26 02:45:00+01:00"]);
        // What falls into the gap falls together, with what is due at its end too.
        check(
            "0,20,40 2-3 * * *",
            "Europe/Berlin",
            "2026-03-29T00:50:00Z",
            &["2026-03-29 03:00:00+02:00", "2026-03-29 03:20:00+02:00"],
        );
    }

    #[test]
    fn open_hours_go_as_the_hands_of_the_clock_go() {
        check(
            "0 * * * *",
            "Europe/Berlin",
            "2026-03-29T00:30:00Z",
            &["2026-03-29 03:00:00+02:00", "2026-03-29 04:00:00+02:00"],
        );
        check(
            "0 * * * *",
            "Europe/Berlin",
            "2026-10-24T23:30:00Z",
            &["2026-10-25 02:00:00+02:00", "2026-10-25 02:00:00+01:00", "2026-10-25 03:00:00+01:00"],
        );
        check(
            "*/30 * * * *",
            "America/New_York",
            "2026-11-01T05:00:00Z",
            &["2026-11-01 01:30:00-04:00", "2026-11-01 01:00:00-05:00", "2026-11-01 01:30:00-05:00"],
        );
        check(
            "0 */2 * * *",
            "America/New_York",
            "2026-03-08T05:30:00Z",
            &["2026-03-08 04:00:00-04:00", "2026-03-08 06:00:00-04:00"],
        );
    }

    #[test]
    fn clocks_that_are_set_by_half_an_hour_or_by_a_day() {
        check(
            "15 */2 * * *",
            "Australia/Lord_Howe",
            "2026-04-04T13:20:00Z",
            &["2026-04-05 02:15:00+10:30", "2026-04-05 04:15:00+10:30"],
        );
        check(
            "45 1 * * *",
            "Australia/Lord_Howe",
            "2026-04-04T13:20:00Z",
            &["2026-04-05 01:45:00+11:00", "2026-04-06 01:45:00+10:30"],
        );
        // Samoa had no 30 December 2011.
        check(
            "0 9 * * *",
            "Pacific/Apia",
            "2011-12-29T00:00:00Z",
            &["2011-12-29 09:00:00-10:00", "2011-12-31 00:00:00+14:00", "2011-12-31 09:00:00+14:00"],
        );
        check(
            "0 */6 * * *",
            "Pacific/Apia",
            "2011-12-30T05:00:00Z",
            &["2011-12-31 00:00:00+14:00", "2011-12-31 06:00:00+14:00"],
        );
    }

    #[test]
    fn rare_days_and_short_intervals() {
        check("0 0 29 2 *", "UTC", "2097-01-01T00:00:00Z", &["2104-02-29 00:00:00+00:00"]);
        // A field that begins with a star does not add days to the other's.
        check("0 0 */31 8 6", "UTC", "1971-05-16T09:14:48Z", &["1981-08-01 00:00:00+00:00"]);
        check("0 0 29 2 */7", "UTC", "2089-01-01T00:00:00Z", &["2128-02-29 00:00:00+00:00"]);
        check("0 12 * * 1-5", "UTC", "2026-11-27T13:00:00Z", &["2026-11-30 12:00:00+00:00"]);
        check("@every 90s", "UTC", "2026-01-01T00:00:00Z", &["2026-01-01 00:01:30+00:00", "2026-01-01 00:03:00+00:00"]);
        check("@every 1d", "Europe/Berlin", "2026-01-01T00:00:00Z", &["2026-01-02 01:00:00+01:00"]);
        check("@weekly", "UTC", "2026-11-25T00:00:00Z", &["2026-11-29 00:00:00+00:00"]);
        let timetable = Timetable::parse("@hourly", "UTC").expect("is allowed");
        assert_eq!(timetable.next_after(Timestamp::from_millis(u64::MAX)), None);
        assert_eq!(timetable.next_after(at("9999-01-01T00:00:00Z")), None);
        let last = Timestamp::from_millis(252_999_999_999_999);
        assert_eq!(timetable.next_after(last), None, "nor is there anything beyond them that is due");
    }

    #[test]
    fn what_is_no_expression_and_no_zone_is_named() {
        let refused = |expression: &str, zone: &str| match Timetable::parse(expression, zone) {
            Err(Error::InvalidSchedule { what, message, .. }) => {
                assert!(!message.is_empty());
                what
            }
            other => panic!("{expression} {zone}: {other:?}"),
        };
        let long = "1,".repeat(200);
        for expression in [
            "",
            "*",
            "* * * *",
            "* * * * * *",
            "60 * * * *",
            "* 24 * * *",
            "x * * * *",
            "0 0 31 2 *",
            "@reboot",
            "@every",
            "@every 0s",
            "@every 5",
            "@every -1s",
            "@every 367d",
            "@every 99999999999999999999s",
            "@every 1µ",
            "@every +1s",
            &long,
            "H * * * *",
            "0 3 * * * UTC",
            "\0 * * * *",
        ] {
            assert_eq!(refused(expression, "UTC"), "expression");
        }
        // In a zone whose clock is set twice a year, for ever.
        assert_eq!(refused("* * 31 2 *", "Europe/Berlin"), "expression");
        for zone in ["", "Europe/Atlantis", "../../etc/passwd", "Europe/Berlin ", "é", &"x".repeat(65)] {
            assert_eq!(refused("* * * * *", zone), "time zone");
        }
    }
}
