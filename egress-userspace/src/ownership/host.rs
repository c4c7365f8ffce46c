//! Which host a server's name means: two that carry the same one would both use what is that server's (CLU-3).
//!
//! The shared store says of each name which host has it. A host is known by an identity that was made at random in its state
//! directory, and by its machine id, so that neither a copied configuration nor a copied disk makes it another one. Where both
//! are copied, a daemon that starts cannot tell its own host after a boot from the other one. So it asks by the row itself, and who
//! is at work answers there. Should both be at work all the same, the starts that they count in the row tell one of them.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::api::time::rfc3339;

/// A host that has a server's name, as the shared store has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Made at random once, and kept in its state directory.
    pub id: String,
    /// A digest of its machine id; empty where it has none.
    pub machine: String,
    /// What it calls itself: for people only.
    pub hostname: String,
    /// When it took the name, µs since 1970.
    pub since: i64,
    /// Its how-manieth daemon under this name it is; 0 before the first.
    pub start: u64,
    /// A name for that daemon, which no other one has.
    pub mark: String,
    /// The start of the kernel that it runs under, which has a name.
    #[serde(default)]
    pub boot: String,
    /// The daemon that asks whether this one is at work: it takes that away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked: Option<String>,
}

/// How long a daemon has to answer. Nothing that must hold depends on it.
pub const ANSWER: Duration = if cfg!(test) {
    // Tests are not about how fast a busy machine is.
    Duration::from_secs(60)
} else {
    Duration::from_secs(3)
};

/// A question that was seen in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The mark of the daemon that is asked.
    pub whom: String,
    /// Since when it is known to be.
    pub since: Instant,
}

impl Host {
    /// Whether both are the same host, as far as that can be told. A machine id that is another one by now, under the same kernel,
    /// makes no other host.
    pub fn is(&self, other: &Self) -> bool {
        self.id == other.id && (self.machine == other.machine || self.is_of_boot(&other.boot))
    }

    /// Whether it runs under the kernel whose start has this name, if that is known.
    pub fn is_of_boot(&self, boot: &str) -> bool {
        !boot.is_empty() && self.boot == boot
    }

    /// What becomes of the row of a name: of this daemon's host, which has not started under this name yet where `start`
    /// is 0, and has asked, or seen somebody ask, this.
    pub fn judge(&self, row: Option<&Self>, asked: Option<&Question>, now: Instant) -> Verdict {
        let Some(row) = row else {
            return Verdict::Take {
                since: self.since,
                start: self.start.max(1),
            };
        };
        let take = |start| Verdict::Take {
            since: row.since,
            start,
        };
        if row == self {
            return Verdict::Ours;
        }
        if !row.is(self) {
            return Verdict::Theirs;
        }
        // Somebody asks whether this daemon is at work.
        if row.mark == self.mark {
            return take(self.start.max(row.start));
        }
        if self.start > 0 {
            // A store that was restored knows an earlier daemon of this host.
            let is_earlier = row.start < self.start;
            return if is_earlier {
                take(self.start)
            } else {
                Verdict::Theirs
            };
        }
        // An operator's word, behind which there is no daemon; or one of this host, and there is one at a time.
        if row.start == 0 || self.is_of_boot(&row.boot) {
            return take(row.start + 1);
        }
        let asked = asked.filter(|asked| asked.whom == row.mark);
        match (&row.asked, asked) {
            (None, None) => Verdict::Ask,
            (None, Some(_)) => Verdict::Theirs,
            (Some(_), Some(asked)) if now.saturating_duration_since(asked.since) >= ANSWER => {
                take(row.start + 1)
            }
            (Some(_), _) => Verdict::Wait,
        }
    }

    fn described(&self) -> String {
        let short = |text: &str| match text.get(..8) {
            Some(short) => short.to_owned(),
            None => "none".to_owned(),
        };
        format!(
            "{} (identity {}, machine {})",
            self.hostname,
            short(&self.id),
            short(&self.machine)
        )
    }
}

/// What the row of a name says to a host that goes by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is this daemon's.
    Ours,
    /// Nobody has the name, or an earlier daemon of this host: it is to be taken, with these.
    Take {
        /// As in [`Host::since`].
        since: i64,
        /// As in [`Host::start`].
        start: u64,
    },
    /// A daemon has it that may be at work on a copy of this host: it is to be asked.
    Ask,
    /// It was asked.
    Wait,
    /// Another host has it, which may be a copy of this one, or what this one was copied from.
    Theirs,
}

/// This host goes by a server's name, and is not that server: it uses nothing that servers share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Impostor {
    /// The name.
    pub server: String,
    /// This host.
    pub own: Host,
    /// The one that has the name; none where only the state directory is another host's.
    pub other: Option<Host>,
}

impl Impostor {
    /// What is wrong, in a sentence.
    pub fn reason(&self) -> String {
        let (server, own) = (&self.server, self.own.described());
        let Some(other) = &self.other else {
            return format!(
                "this state directory is another host's, or another server's, or /etc/machine-id has changed: whether this host, \
                 {own}, is {server} only etcd knows, and it does not answer"
            );
        };
        let (theirs, since) = (other.described(), rfc3339(other.since));
        if other.is(&self.own) {
            return format!(
                "{server} is at work on another host, with the identity of this one: {theirs}; one of them was copied from the other"
            );
        }
        format!(
            "another host is {server}: {theirs} has that name in etcd since {since}, and this one is {own}"
        )
    }

    /// What to do about it.
    pub fn remedy(&self) -> String {
        let server = &self.server;
        match &self.other {
            Some(other) if other.is(&self.own) => format!(
                "on the copy, stop egress, remove its state directory (the file *.host above all), and give it a machine id and a \
                 [server] name of its own. If that is the other one, start egress here again then, and this is {server}. Nothing that \
                 servers share is used here meanwhile"
            ),
            _ => format!(
                "give this host a [server] name of its own. Only if the other one is switched off for good: `egress server claim \
                 {server}` here, or `egress server forget {server}` on another server; else its connections end. Nothing that \
                 servers share is used here meanwhile"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(id: &str, machine: &str, start: u64) -> Host {
        Host {
            id: id.into(),
            machine: machine.into(),
            hostname: "h".into(),
            since: 5,
            start,
            mark: format!("{id}{machine}{start}"),
            boot: "one".into(),
            asked: None,
        }
    }

    fn take(since: i64, start: u64) -> Verdict {
        Verdict::Take { since, start }
    }

    fn judged(own: &Host, row: Option<&Host>) -> Verdict {
        own.judge(row, None, Instant::now())
    }

    #[test]
    fn clu_3_a_name_is_the_first_hosts_that_takes_it() {
        let fresh = Host {
            since: 9,
            ..host("a", "m", 0)
        };
        assert_eq!(judged(&fresh, None), take(9, 1));
        let first = host("a", "m", 1);
        assert_eq!(judged(&first, Some(&first)), Verdict::Ours);
        // Another state directory, and another machine with a copy of it.
        for boot in ["another", ""] {
            for other in [host("b", "m", 0), host("a", "n", 0), host("b", "n", 7)] {
                let boot = boot.to_owned();
                let other = Host { boot, ..other };
                assert_eq!(judged(&other, Some(&first)), Verdict::Theirs, "{other:?}");
            }
        }
        // Its machine id was made anew while it was at work; another state directory is another host all the same.
        assert_eq!(judged(&host("a", "n", 0), Some(&first)), take(5, 2));
        assert_eq!(judged(&host("b", "m", 0), Some(&first)), Verdict::Theirs);
        // Nobody knows under which kernel the other one is.
        let unknown = |start| Host {
            boot: String::new(),
            ..host("a", "m", start)
        };
        assert_eq!(judged(&unknown(0), Some(&unknown(1))), Verdict::Ask);
        // An operator's word took the row away: whoever is first has it.
        assert_eq!(judged(&first, None), take(5, 1));
    }

    #[test]
    fn clu_3_of_two_with_one_identity_the_later_one_stays() {
        let fresh = host("a", "m", 0);
        let first = host("a", "m", 1);
        assert_eq!(judged(&fresh, Some(&first)), take(5, 2));
        let second = host("a", "m", 2);
        assert_eq!(judged(&first, Some(&second)), Verdict::Theirs);
        let copy = Host {
            mark: "copy".into(),
            ..second.clone()
        };
        assert_eq!(judged(&second, Some(&copy)), Verdict::Theirs);
        // A store that was restored says what was before; so does a claim that an operator has made.
        assert_eq!(judged(&second, Some(&first)), take(5, 2));
        let word = Host {
            mark: "word".into(),
            ..host("a", "m", 0)
        };
        assert_eq!(judged(&second, Some(&word)), take(5, 2));
        assert_eq!(judged(&fresh, Some(&word)), take(5, 1));
    }

    #[test]
    fn clu_3_who_is_at_work_answers_and_who_is_not_has_no_say() {
        let began = Instant::now();
        let row = host("a", "m", 4);
        let booted = Host {
            boot: "another".into(),
            mark: "booted".into(),
            ..host("a", "m", 0)
        };
        assert_eq!(judged(&booted, Some(&row)), Verdict::Ask);
        let asked = Host {
            asked: Some("booted".into()),
            ..row.clone()
        };
        let question = Question {
            whom: row.mark.clone(),
            since: began,
        };
        let later = |row, after| booted.judge(Some(row), Some(&question), began + after);
        let soon = ANSWER - Duration::from_millis(1);
        assert_eq!(later(&asked, soon), Verdict::Wait);
        assert_eq!(later(&asked, ANSWER), take(5, 5));
        // Whoever else asks.
        let others = Host {
            asked: Some("third".into()),
            ..row.clone()
        };
        assert_eq!(judged(&booted, Some(&others)), Verdict::Wait);
        assert_eq!(later(&others, ANSWER), take(5, 5));
        // The one that is asked says so at any time, and has said so for as long as it runs.
        assert_eq!(judged(&row, Some(&asked)), take(5, 4));
        assert_eq!(later(&row, ANSWER), Verdict::Theirs);
        let next = host("a", "m", 5);
        assert_eq!(later(&next, ANSWER), Verdict::Ask);
    }

    #[test]
    fn what_is_wrong_is_said_with_names_times_and_a_way_out() {
        let own = Host {
            hostname: "fra01b".into(),
            ..host("0123456789abcdef", "", 0)
        };
        let other = Host {
            hostname: "fra01a".into(),
            since: 1_700_000_000_000_000,
            ..host("fedcba9876543210", "00112233", 3)
        };
        let impostor = |other| Impostor {
            server: "fra01-s1".into(),
            own: own.clone(),
            other,
        };
        let found = impostor(Some(other));
        assert_eq!(
            found.reason(),
            "another host is fra01-s1: fra01a (identity fedcba98, machine 00112233) has that name in etcd since \
             2023-11-14T22:13:20.000000Z, and this one is fra01b (identity 01234567, machine none)"
        );
        assert!(found.remedy().contains("`egress server claim fra01-s1`"));
        let found = impostor(Some(own.clone()));
        assert!(found.reason().contains("with the identity of this one"));
        assert!(found.remedy().contains("on the copy"));
        assert!(impostor(None).reason().contains("does not answer"));
    }
}
