//! Servers learn at different moments that one of them has something again, or nothing any more. Whoever goes on to send it
//! connections then, or begins too early, would have them refused. So the one that loses its last slices goes on a little
//! longer, and the others begin a little later. It is a courtesy: nothing that must hold depends on it.

use std::thread;
use std::time::Duration;

use crate::ownership::Row;
use crate::resource::{Drain, Kind, Object, Owner};
use crate::store::Stored;

/// How much longer, and how much later: some ten times what it takes until everybody has heard.
const GRACE: Duration = Duration::from_millis(1_500);

/// Waits, where this server is to give up the last that it has, or another one has something again.
pub(super) fn wait(before: &Stored, after: &Stored, own: &str) {
    if is_due(before, after, own) {
        thread::sleep(GRACE);
    }
}

/// Whether to wait: not with what others may have been given already, nor with any other change.
fn is_due(before: &Stored, after: &Stored, own: &str) -> bool {
    let is_fenced = after
        .ownership
        .as_ref()
        .is_some_and(|ownership| ownership.is_fenced(own));
    !is_fenced
        && (gives_up(before, after, own) || returns(before, after, own))
        && but_drains(before).eq(but_drains(after))
}

/// Whatever is stored besides drains.
fn but_drains(stored: &Stored) -> impl Iterator<Item = (&(Kind, String), &(Owner, Object))> {
    let all = stored.objects.iter();
    all.filter(|((kind, _), _)| *kind != Kind::Drain)
}

fn drains(stored: &Stored, server: &str) -> bool {
    let id = Drain::of_server(server);
    stored.objects.contains_key(&(Kind::Drain, id))
}

/// Whether a server is to open nothing any more, of some address or of all.
fn gives_up(before: &Stored, after: &Stored, server: &str) -> bool {
    let (Some(old), Some(new)) = (&before.ownership, &after.ownership) else {
        return false;
    };
    if drains(after, server) {
        return !drains(before, server);
    }
    old.rows.iter().any(|(address, row)| {
        new.rows.get(address) != Some(row)
            && old.open(server, *address) != 0
            && new.open(server, *address) == 0
    })
}

/// Whether another server may open something again, of an address of which it could open nothing, or of all.
fn returns(before: &Stored, after: &Stored, own: &str) -> bool {
    let (Some(old), Some(new)) = (&before.ownership, &after.ownership) else {
        return false;
    };
    let drained = before.objects.keys().filter_map(|(kind, id)| {
        let server = Drain::server(id).filter(|_| *kind == Kind::Drain)?;
        Some(server).filter(|server| *server != own)
    });
    let mut undrained = drained.filter(|server| !drains(after, server));
    undrained.next().is_some()
        || old.rows.iter().any(|(address, row)| {
            let now = new.rows.get(address).filter(|now| *now != row);
            let others = now.into_iter().flat_map(Row::servers);
            others
                .filter(|server| *server != own && !drains(after, server))
                .any(|server| old.open(server, *address) == 0 && new.open(server, *address) != 0)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ownership::Ownership;
    use crate::resource::Account;

    /// Rows of one address, by server and slices, and who drains.
    fn stored(rows: &[(&str, u32)], drained: &[&str]) -> Stored {
        let mut stored = Stored::default();
        let mut ownership = Ownership::default();
        let address = "192.0.2.1".parse().unwrap();
        ownership.rows.insert(address, Row::first(rows));
        stored.ownership = Some(ownership);
        for name in drained {
            let subject = Drain::of_server(name);
            let object = Object::Drain(Drain {
                subject: subject.clone(),
            });
            stored
                .objects
                .insert((Kind::Drain, subject), (Owner::Api, object));
        }
        stored
    }

    #[test]
    fn fwd_7_only_the_last_that_a_server_has_is_given_up_late() {
        let both = stored(&[("a", 0b0110), ("b", 0b1000)], &[]);
        for (after, expected) in [
            (stored(&[("a", 0b0010), ("b", 0b1100)], &[]), false),
            (stored(&[("b", 0b1110)], &[]), true),
            (stored(&[("a", 0b0110), ("b", 0b1000)], &["a"]), true),
            (stored(&[("a", 0b0110), ("b", 0b1000)], &["b"]), false),
        ] {
            assert_eq!(gives_up(&both, &after, "a"), expected, "{after:?}");
            // It drains already.
            let drained = stored(&[("a", 0b0110), ("b", 0b1000)], &["a"]);
            let mut after = after;
            after.objects.extend(drained.objects.clone());
            assert!(!gives_up(&drained, &after, "a"), "{after:?}");
        }
        let alone = Stored {
            ownership: None,
            ..stored(&[], &[])
        };
        assert!(!gives_up(&alone, &stored(&[], &["a"]), "a"));
    }

    #[test]
    fn clu_3_nobody_waits_with_what_others_have_nor_with_another_change() {
        let both = stored(&[("a", 0b0110), ("b", 0b1000)], &[]);
        let given_up = stored(&[("b", 0b1110)], &[]);
        assert!(is_due(&both, &given_up, "a"));
        let mut fenced = given_up.clone();
        let ownership = fenced.ownership.as_mut().unwrap();
        ownership.forgotten.insert("a".into(), 1);
        assert!(!is_due(&both, &fenced, "a"));
        let mut more = given_up;
        let account = Account {
            id: "1".into(),
            name: "acme".into(),
            egress_tcp: true,
            egress_udp: true,
            policy_percent: None,
            pool_percent: None,
        };
        let key = (Kind::Account, "acme".to_owned());
        more.objects
            .insert(key, (Owner::Api, Object::Account(account)));
        assert!(!is_due(&both, &more, "a"));
    }

    #[test]
    fn fwd_7_only_who_had_nothing_is_sent_something_late() {
        let rows = [("a", 0b0110), ("b", 0b1000)];
        let both = stored(&rows, &[]);
        for (before, expected) in [
            (stored(&[("a", 0b0010), ("b", 0b1100)], &[]), false),
            (stored(&[("b", 0b1110)], &[]), true),
            (stored(&rows, &["a"]), true),
            // That is this server.
            (stored(&rows, &["b"]), false),
            (stored(&[("a", 0b1110)], &[]), false),
            (Stored::default(), false),
        ] {
            assert_eq!(returns(&before, &both, "b"), expected, "{before:?}");
        }
        let drained = stored(&rows, &["a"]);
        let without = stored(&[("b", 0b1110)], &["a"]);
        assert!(!returns(&without, &drained, "b"));
    }
}
