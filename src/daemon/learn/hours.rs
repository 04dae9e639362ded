//! Hours of the day.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Minutes of a day.
const DAY: u16 = 24 * 60;

/// A span of the day, written `22:00-06:30`; one that ends before it begins goes over midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Hours {
    /// First minute.
    from: u16,
    /// The minute after the last.
    to: u16,
}

impl Hours {
    /// Whether a minute of the day lies within.
    pub fn hold(self, minute: u16) -> bool {
        if self.from < self.to {
            (self.from..self.to).contains(&minute)
        } else {
            minute >= self.from || minute < self.to
        }
    }
}

impl TryFrom<String> for Hours {
    type Error = String;

    fn try_from(text: String) -> Result<Hours, String> {
        let minute = |part: &str| -> Option<u16> {
            let (hours, minutes) = part.trim().split_once(':')?;
            let digits =
                |t: &str| (1..=2).contains(&t.len()) && t.bytes().all(|b| b.is_ascii_digit());
            if !digits(hours) || minutes.len() != 2 || !digits(minutes) {
                return None;
            }
            let (hours, minutes): (u16, u16) = (hours.parse().ok()?, minutes.parse().ok()?);
            let at = hours * 60 + minutes;
            (minutes < 60 && at <= DAY).then_some(at)
        };
        let parsed = text.split_once('-').and_then(|(a, b)| Some((minute(a)?, minute(b)?)));
        match parsed {
            Some((from, to)) if from != to && from < DAY => Ok(Hours { from, to }),
            _ => Err(format!("'{text}' are no hours, expected such as 22:00-06:30")),
        }
    }
}

impl From<Hours> for String {
    fn from(hours: Hours) -> String {
        hours.to_string()
    }
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Hours { from, to } = self;
        write!(f, "{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, to / 60, to % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hours(text: &str) -> Hours {
        text.to_string().try_into().unwrap()
    }

    #[test]
    fn spans_within_a_day_and_over_midnight() {
        let night = hours("22:00-6:30");
        let held: Vec<u16> =
            [0, 389, 390, 1319, 1320, 1439].into_iter().filter(|&m| night.hold(m)).collect();
        assert_eq!(held, [0, 389, 1320, 1439]);
        assert!(hours("09:00-17:00").hold(540) && !hours("09:00-17:00").hold(1020));
        assert!(hours("00:00-24:00").hold(0) && hours("00:00-24:00").hold(1439));
        assert_eq!(night.to_string(), "22:00-06:30");
        for bad in
            ["", "22-6", "1:00-1:00", "25:00-1:00", "1:60-2:00", "1:00", "+1:00-2:00", "24:00-1:00"]
        {
            assert!(Hours::try_from(bad.to_string()).is_err(), "{bad}");
        }
    }
}
