//! What is remembered of one server's answers: pure, so that it can be tried with any times.

use std::time::{Duration, Instant};

use egress_common::distance::Distance;

use super::{Health, State};

/// Without an answer for this long a server counts as dead. With the time between two probes and what it takes to
/// put in force, that is noticed within three seconds.
pub const SILENCE: Duration = Duration::from_millis(2_000);
/// For how long one that was dead must answer, without such a silence, before it gets new connections.
pub const RETURN_AFTER: Duration = Duration::from_secs(10);

/// Answers of one server.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    begun: Instant,
    last: Option<Instant>,
    /// Dead; since when it answers again, if it does.
    dead: Option<Option<Instant>>,
    distance: Distance,
}

impl Record {
    /// Of a server that is asked from now on.
    pub fn new(now: Instant) -> Self {
        Self {
            begun: now,
            last: None,
            dead: None,
            distance: Distance::configured(0),
        }
    }

    /// The same, when nobody was asked for so long: that is not its silence.
    #[must_use]
    pub fn later(&self, unasked: Duration) -> Self {
        Self {
            begun: self.begun + unasked,
            last: self.last.map(|last| last + unasked),
            dead: self.dead.map(|since| since.map(|since| since + unasked)),
            distance: self.distance,
        }
    }

    /// It answered after this time.
    pub fn answered(&mut self, now: Instant, round_trip: Duration) {
        let microseconds = u32::try_from(round_trip.as_micros()).unwrap_or(u32::MAX);
        self.distance = self.distance.measured(microseconds);
        self.last = Some(now);
        if self.dead == Some(None) {
            self.dead = Some(Some(now));
        }
    }

    /// Looks what time has done to it; `others` says whether anybody else has answered, so that silence means something.
    pub fn look(&mut self, now: Instant, others: bool) {
        let silent = match self.last {
            Some(last) => now.saturating_duration_since(last) >= SILENCE,
            None => others && now.saturating_duration_since(self.begun) >= SILENCE,
        };
        if silent {
            self.dead = Some(None);
        } else if let Some(Some(since)) = self.dead
            && now.saturating_duration_since(since) >= RETURN_AFTER
        {
            self.dead = None;
        }
    }

    /// Whether it has ever answered.
    pub fn is_known(&self) -> bool {
        self.last.is_some()
    }

    /// What follows.
    pub fn health(&self) -> Health {
        Health {
            state: match (self.dead, self.last) {
                (Some(None), _) => State::Silent,
                (Some(Some(_)), _) => State::Returning,
                (None, Some(_)) => State::Alive,
                (None, None) => State::Unknown,
            },
            round_trip_us: self.last.map(|_| self.distance.settled()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that answers in these ranges of tenths of a second, asked every half second, looked at as often.
    fn states(answers: &[std::ops::Range<u64>], others: bool) -> Vec<(u64, State)> {
        let start = Instant::now();
        let mut record = Record::new(start);
        let mut seen = vec![(0, record.health().state)];
        for tenth in (0..400).step_by(5) {
            let now = start + Duration::from_millis(tenth * 100);
            if answers.iter().any(|range| range.contains(&tenth)) {
                record.answered(now, Duration::from_micros(700));
            }
            record.look(now, others);
            let state = record.health().state;
            if seen.last().map(|(_, last)| *last) != Some(state) {
                seen.push((tenth, state));
            }
        }
        seen
    }

    #[test]
    fn fwd_7_silence_is_death_within_three_seconds_and_return_is_damped() {
        assert_eq!(
            states(&[0..101, 150..400], false),
            [
                (0, State::Unknown),
                (0, State::Alive),
                (120, State::Silent),
                (150, State::Returning),
                (250, State::Alive),
            ]
        );
    }

    #[test]
    fn fwd_7_what_nobody_asked_for_is_no_silence_and_the_dead_stay_dead() {
        let start = Instant::now();
        let at = |tenths: u64| start + Duration::from_millis(tenths * 100);
        let mut alive = Record::new(start);
        alive.answered(at(5), Duration::from_micros(700));
        let mut dead = alive;
        dead.look(at(40), true);
        assert_eq!(dead.health().state, State::Silent);
        let minute = Duration::from_secs(60);
        let (mut alive, mut dead) = (alive.later(minute), dead.later(minute));
        alive.look(at(610), true);
        dead.look(at(610), true);
        assert_eq!(alive.health().state, State::Alive);
        assert_eq!(dead.health().state, State::Silent);
        alive.look(at(630), true);
        assert_eq!(alive.health().state, State::Silent);
    }

    #[test]
    fn fwd_7_who_comes_and_goes_does_not_return() {
        let flapping: Vec<_> = (0..13).map(|at| at * 30..at * 30 + 5).collect();
        let states = states(&flapping, false);
        assert_eq!(
            states[..3],
            [(0, State::Unknown), (0, State::Alive), (20, State::Silent)]
        );
        assert!(
            !states[3..].iter().any(|(_, state)| *state == State::Alive),
            "{states:?}"
        );
    }

    #[test]
    fn fwd_7_one_lost_answer_is_nothing() {
        assert_eq!(
            states(&[0..40, 55..400], false),
            [(0, State::Unknown), (0, State::Alive)]
        );
    }

    #[test]
    fn fwd_7_who_never_answered_is_dead_only_if_others_do() {
        assert_eq!(states(&[], false), [(0, State::Unknown)]);
        assert_eq!(
            states(&[], true),
            [(0, State::Unknown), (20, State::Silent)]
        );
    }

    #[test]
    fn fwd_3_the_round_trip_is_told_once_there_was_one() {
        let now = Instant::now();
        let mut record = Record::new(now);
        assert_eq!(record.health().round_trip_us, None);
        record.answered(now, Duration::from_micros(1_234));
        assert_eq!(record.health().round_trip_us, Some(1_234));
    }
}
