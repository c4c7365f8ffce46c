//! How often somebody may ask: so many requests in five minutes.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderValue};

/// The time over which requests are counted.
const WINDOW: Duration = Duration::from_secs(300);
/// Addresses that are remembered at once; beyond that, newcomers share one count.
const MAX_ADDRESSES: usize = 10_000;
/// Windows that have ended are forgotten this often at most: looking for them takes time.
const TIDYING: Duration = Duration::from_secs(10);

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

/// Counts requests. Whoever has no token takes no place from those who have one.
#[derive(Debug)]
pub(super) struct Limiter {
    limit: u32,
    /// As many as there are tokens.
    tokens: Mutex<Windows<String>>,
    /// At most [`MAX_ADDRESSES`].
    addresses: Mutex<Windows<IpAddr>>,
}

#[derive(Debug)]
struct Windows<K> {
    of: HashMap<K, Window>,
    most: usize,
    /// That of everybody who found no place in `of`.
    others: Option<Window>,
    tidied: Option<Instant>,
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
            tokens: Mutex::new(Windows::new(usize::MAX)),
            addresses: Mutex::new(Windows::new(MAX_ADDRESSES)),
        }
    }

    /// Counts a request.
    pub(super) fn take(&self, asker: Asker, now: Instant) -> Left {
        match asker {
            Asker::Token(id) => locked(&self.tokens).take(id, self.limit, now),
            Asker::Address(address) => locked(&self.addresses).take(address, self.limit, now),
        }
    }
}

fn locked<K>(windows: &Mutex<Windows<K>>) -> MutexGuard<'_, Windows<K>> {
    windows.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K: Eq + Hash> Windows<K> {
    fn new(most: usize) -> Self {
        Self {
            of: HashMap::new(),
            most,
            others: None,
            tidied: None,
        }
    }

    fn take(&mut self, asker: K, limit: u32, now: Instant) -> Left {
        if self
            .tidied
            .is_none_or(|last| now.duration_since(last) >= TIDYING)
        {
            self.of.retain(|_, window| window.ends > now);
            self.tidied = Some(now);
        }
        let new = Window {
            ends: now + WINDOW,
            taken: 0,
        };
        let has_place = self.of.len() < self.most || self.of.contains_key(&asker);
        let window = if has_place {
            self.of.entry(asker).or_insert(new)
        } else {
            self.others.get_or_insert(new)
        };
        if window.ends <= now {
            *window = new;
        }
        let allowed = window.taken < limit;
        window.taken += u32::from(allowed);
        Left {
            limit,
            remaining: limit - window.taken,
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

    /// The address of this number, in a network of its own.
    fn address(number: usize) -> Asker {
        let number = u128::try_from(number).unwrap();
        Asker::at((number << 64).to_be_bytes().into())
    }

    #[test]
    fn a_flood_of_addresses_takes_bounded_memory_and_shares_one_count() {
        let limiter = Limiter::new(2);
        let now = Instant::now();
        for number in 0..MAX_ADDRESSES {
            assert!(limiter.take(address(number), now).allowed);
        }
        let late: Vec<bool> = (MAX_ADDRESSES..MAX_ADDRESSES + 100)
            .map(|number| limiter.take(address(number), now).allowed)
            .collect();
        assert_eq!(
            late.iter().filter(|allowed| **allowed).count(),
            2,
            "together"
        );
        assert_eq!(locked(&limiter.addresses).of.len(), MAX_ADDRESSES);
        assert!(limiter.take(address(0), now).allowed, "counted for itself");
        assert!(!limiter.take(address(0), now).allowed);
        for number in 0..2 * MAX_ADDRESSES {
            let left = limiter.take(Asker::Token(number.to_string()), now);
            assert_eq!((left.allowed, left.remaining), (true, 1), "token {number}");
        }
        let later = now + WINDOW;
        assert!(limiter.take(address(MAX_ADDRESSES), later).allowed);
        limiter.take(Asker::Token("0".into()), later);
        assert_eq!(locked(&limiter.addresses).of.len(), 1, "forgotten");
        assert_eq!(locked(&limiter.tokens).of.len(), 1, "forgotten");
    }

    #[test]
    fn those_who_share_a_count_have_a_window_too() {
        let limiter = Limiter::new(1);
        let now = Instant::now();
        for number in 0..=MAX_ADDRESSES {
            assert!(limiter.take(address(number), now).allowed);
        }
        // Those with a place come back before the others' window has ended, and stay.
        let later = now + WINDOW - Duration::from_secs(1);
        assert!(!limiter.take(address(MAX_ADDRESSES), later).allowed);
        assert!(!limiter.take(address(1), later).allowed);
    }

    #[test]
    fn ended_windows_are_not_looked_for_at_every_request() {
        let limiter = Limiter::new(1);
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        limiter.take(address(0), after(0));
        limiter.take(address(1), after(295));
        limiter.take(address(2), after(301));
        assert_eq!(locked(&limiter.addresses).of.len(), 3, "looked at 295");
        limiter.take(address(2), after(305));
        assert_eq!(locked(&limiter.addresses).of.len(), 2);
    }

    #[test]
    fn an_ipv6_network_is_one_asker() {
        let at = |text: &str| Asker::at(text.parse().unwrap());
        assert_eq!(at("2001:db8::1"), at("2001:db8::2"));
        assert_ne!(at("2001:db8::1"), at("2001:db8:0:1::1"));
        assert_eq!(at("::ffff:192.0.2.1"), at("192.0.2.1"));
    }
}
