//! Points in time as the API writes them.

/// Seconds of a day.
const DAY: i64 = 86_400;

/// RFC 3339 in UTC, from µs since 1970.
pub(crate) fn rfc3339(micros: i64) -> String {
    let (seconds, micros) = (micros.div_euclid(1_000_000), micros.rem_euclid(1_000_000));
    let (days, second) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    let (year, month, day) = date(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{micros:06}Z",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// The beginning of a bucket as GraphQL writes it: RFC 3339 in UTC, from seconds since 1970.
pub(super) fn rfc3339_seconds(seconds: i64) -> String {
    let mut text = rfc3339(seconds.saturating_mul(1_000_000));
    text.replace_range(text.len() - ".000000Z".len().., "Z");
    text
}

/// µs since 1970 of an RFC 3339 time.
pub(super) fn parse(text: &str) -> Option<i64> {
    let (date, rest) = (text.get(..10)?, text.get(11..)?);
    let separator = text.as_bytes().get(10)?;
    let number = |text: &str, length: usize| -> Option<i64> {
        let digits = text.len() == length && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse().ok())?
    };
    let three = |text: &str, separator: char, length: usize| -> Option<[i64; 3]> {
        let mut parts = text.split(separator);
        let found = [
            number(parts.next()?, length)?,
            number(parts.next()?, 2)?,
            number(parts.next()?, 2)?,
        ];
        parts.next().is_none().then_some(found)
    };
    let [year, month, day] = three(date, '-', 4)?;
    let [hour, minute, second] = three(rest.get(..8)?, ':', 2)?;
    let valid = matches!(separator, b'T' | b't' | b' ')
        && (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && hour < 24
        && minute < 60
        && second <= 60;
    if !valid {
        return None;
    }
    let mut rest = rest.get(8..)?;
    let mut micros = 0;
    if let Some(fraction) = rest.strip_prefix('.') {
        let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
        let shown = fraction.get(..digits.min(6)).filter(|_| digits > 0)?;
        micros = format!("{shown:0<6}").parse().ok()?;
        rest = fraction.get(digits..)?;
    }
    let offset = match rest.as_bytes() {
        b"Z" | b"z" => 0,
        [sign @ (b'+' | b'-'), ..] => {
            let (hours, minutes) = rest.get(1..)?.split_once(':')?;
            let minutes = number(hours, 2)? * 60 + number(minutes, 2)?;
            if *sign == b'+' { minutes } else { -minutes }
        }
        _ => return None,
    };
    let seconds = days(year, month, day) * DAY + hour * 3600 + (minute - offset) * 60 + second;
    Some(seconds * 1_000_000 + micros)
}

/// Days since 1970-01-01 of a date: what [`date`] turns back.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let month = if month > 2 { month - 3 } else { month + 9 };
    let day_of_era =
        year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + (153 * month + 2) / 5 + day - 1;
    era * 146_097 + day_of_era - 719_468
}

/// The date, from days since 1970-01-01, by 400-year eras that begin on 1 March: leap days then come last.
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_follow_each_other_as_in_a_calendar() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000Z");
        // The sample of the setting in the original's documentation.
        assert_eq!(
            rfc3339(1_734_722_338_145_335),
            "2024-12-20T19:18:58.145335Z"
        );
        let (mut year, mut month, mut day) = (1970, 1, 1);
        for days in 0..60_000 {
            assert_eq!(date(days), (year, month, day));
            assert_eq!(super::days(year, month, day), days);
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let last = match month {
                2 => 28 + i64::from(leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            day += 1;
            if day > last {
                (month, day) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
    }

    #[test]
    fn times_are_read_as_they_are_written() {
        for micros in [0, 1, -1, 1_734_722_338_145_335, -62_000_000_000_000_001] {
            assert_eq!(parse(&rfc3339(micros)), Some(micros));
        }
        assert_eq!(rfc3339_seconds(1_736_467_500), "2025-01-10T00:05:00Z");
        let same = 1_736_467_500_000_000;
        for text in [
            "2025-01-10T00:05:00Z",
            "2025-01-10t00:05:00.0000000z",
            "2025-01-10 01:05:00+01:00",
            "2025-01-09T23:35:00.0-00:30",
        ] {
            assert_eq!(parse(text), Some(same), "{text}");
        }
        for text in [
            "",
            "2025-01-10",
            "2025-01-10T00:05",
            "2025-01-10T00:05:00",
            "2025-13-10T00:05:00Z",
            "2025-01-10T24:05:00Z",
            "2025-01-10T00:05:00.Z",
            "2025-01-10T00:05:00+1:00",
            "2025-01-10T00:05:00ZZ",
            "+025-01-10T00:05:00Z",
            "2025-01-10T00:05:0\u{e9}Z",
            "1736467500",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
