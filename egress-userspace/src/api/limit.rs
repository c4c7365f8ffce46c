//! How often somebody may ask: so many requests in five minutes.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderValue};

/// The time over which requests are counted.
const WINDOW: Duration = Duration::from_secs(300);
/// Who is remembered at once; beyond that, newcomers are not counted.
const MAX_ASKERS: usize = 10_000;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Asker {
    /// A token, by its id.
    Token(String),
    /// Somebody without a token, by the address: of IPv6 its /64.
    Address(IpAddr),
}

impl Asker {
    pub(super) fn at(address: IpAddr) -> Self {
        Self::Address(match address {
            IpAddr::V4(_) => address,
            IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
                Some(v4) => v4.into(),
                None => (u128::from(v6) >> 64 << 64).to_be_bytes().into(),
            },
        })
    }
}

/// Counts requests.
#[derive(Debug)]
pub(super) struct Limiter {
    limit: u32,
    windows: Mutex<HashMap<Asker, Window>>,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    ends: Instant,
    taken: u32,
}

/// What is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Left {
    limit: u32,
    remaining: u32,
    /// Seconds until the count begins anew.
    reset: u64,
    /// Whether this request is within the limit.
    pub(super) allowed: bool,
}

impl Limiter {
    pub(super) fn new(limit: u32) -> Self {
        Self {
            limit,
            windows: Mutex::default(),
        }
    }

    /// Counts a request.
    pub(super) fn take(&self, asker: Asker, now: Instant) -> Left {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        if windows.len() >= MAX_ASKERS && !windows.contains_key(&asker) {
            windows.retain(|_, window| window.ends > now);
        }
        let new = Window {
            ends: now + WINDOW,
            taken: 0,
        };
        let mut uncounted = new;
        let window = if windows.len() < MAX_ASKERS || windows.contains_key(&asker) {
            windows.entry(asker).or_insert(new)
        } else {
            &mut uncounted
        };
        if window.ends <= now {
            *window = new;
        }
        let allowed = window.taken < self.limit;
        window.taken += u32::from(allowed);
        Left {
            limit: self.limit,
            remaining: self.limit - window.taken,
            reset: window.ends.duration_since(now).as_secs() + 1,
            allowed,
        }
    }
}

impl Left {
    /// Says it in the headers that clients look at.
    pub(super) fn tell(self, headers: &mut HeaderMap) {
        headers.insert("x-ratelimit-limit", self.limit.into());
        headers.insert("x-ratelimit-remaining", self.remaining.into());
        headers.insert("x-ratelimit-reset", HeaderValue::from(self.reset));
        if !self.allowed {
            headers.insert("retry-after", HeaderValue::from(self.reset));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_lets_so_many_through_and_then_begins_anew() {
        let limiter = Limiter::new(3);
        let start = Instant::now();
        let ask = |who: &str, after| {
            let left = limiter.take(Asker::Token(who.into()), start + Duration::from_secs(after));
            (left.allowed, left.remaining)
        };
        assert_eq!(
            [ask("a", 0), ask("a", 1), ask("a", 2)],
            [(true, 2), (true, 1), (true, 0)]
        );
        assert_eq!(ask("a", 299), (false, 0));
        assert_eq!(ask("b", 299), (true, 2), "another token");
        assert_eq!(ask("a", 300), (true, 2));
    }

    #[test]
    fn memory_is_bounded_and_an_ipv6_network_is_one_asker() {
        let limiter = Limiter::new(1);
        let now = Instant::now();
        for number in 0..2 * MAX_ASKERS {
            limiter.take(Asker::Token(number.to_string()), now);
        }
        assert_eq!(limiter.windows.lock().unwrap().len(), MAX_ASKERS);
        assert!(!limiter.take(Asker::Token("0".into()), now).allowed);
        limiter.take(Asker::Token("late".into()), now + WINDOW);
        assert_eq!(limiter.windows.lock().unwrap().len(), 1);
        let at = |text: &str| Asker::at(text.parse().unwrap());
        assert_eq!(at("2001:db8::1"), at("2001:db8::2"));
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
        assert_eq!(at("::ffff:192.0.2.1"), at("192.0.2.1"));
    }
}
