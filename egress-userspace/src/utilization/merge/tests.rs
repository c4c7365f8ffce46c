use super::*;
use proptest::prelude::*;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// What one server had of one protocol.
#[derive(Clone, Debug)]
struct Part {
    protocol: u8,
    /// Connections in each second.
    seconds: Vec<u64>,
    /// The data plane's maximum is never below a second's.
    above: u64,
    capacity: u64,
    /// Whether the seconds were kept.
    told: bool,
    /// Seconds that were counted.
    known: u64,
}

impl Part {
    fn max(&self) -> u64 {
        self.seconds.iter().max().unwrap() + self.above
    }

    fn sum(&self) -> u64 {
        let known = usize::try_from(self.known).unwrap();
        self.seconds[..known].iter().sum::<u64>() * 1_000
    }

    fn row(&self, whole: u64) -> Row {
        let mut levels = Levels::zero();
        for (at, level) in self.seconds.iter().enumerate() {
            levels.raise(at, at, *level);
        }
        Row {
            start: 1_700_000_100,
            length: 300,
            pop: "fra01".into(),
            egress_ip: "192.0.2.1".into(),
            origin: "203.0.113.5:443".into(),
            protocol: self.protocol,
            sum: self.sum(),
            possible: self.known * 1_000 * self.capacity,
            max: self.max(),
            capacity: self.capacity,
            whole,
            seconds: if self.told {
                levels.bytes()
            } else {
                Vec::new()
            },
        }
    }
}

fn part() -> impl Strategy<Value = Part> {
    let runs = prop::collection::vec((1usize..150, 0u64..9_000), 1..30);
    let known = prop_oneof![3 => Just(300u64), 1 => 1u64..300];
    (
        any::<bool>(),
        runs,
        0u64..3,
        10_000u64..20_000,
        prop::bool::weighted(0.8),
        known,
    )
        .prop_map(|(tcp, runs, above, capacity, told, known)| {
            let runs = runs.into_iter().cycle();
            let seconds = runs.flat_map(|(length, level)| std::iter::repeat_n(level, length));
            Part {
                protocol: if tcp { TCP } else { UDP },
                seconds: seconds.take(LENGTH).collect(),
                above,
                capacity,
                told,
                known,
            }
        })
}

proptest! {
    #[test]
    fn obs_1_a_data_centers_maximum_is_that_of_the_sums_of_its_servers_seconds(
        parts in prop::collection::vec(part(), 1..6), whole in 100_000u64..200_000,
    ) {
        let rows: Vec<Row> = parts.iter().map(|part| part.row(whole)).collect();
        let mut found = merge(&rows).into_iter();
        for protocol in [TCP, UDP] {
            let servers: Vec<&Part> = parts.iter().filter(|one| one.protocol == protocol).collect();
            if servers.is_empty() {
                continue;
            }
            let mut told = 0;
            let mut truth = 0;
            for second in 0..LENGTH {
                let mut sum = 0;
                let mut really = 0;
                for server in &servers {
                    really += server.seconds[second];
                    sum += if server.told { server.seconds[second] } else { server.max() };
                }
                told = told.max(sum);
                truth = truth.max(really);
            }
            let highest = servers.iter().map(|one| one.max()).max().unwrap();
            let peaks: u64 = servers.iter().map(|one| one.max()).sum();
            let one = found.next().unwrap();
            prop_assert_eq!((one.max, one.capacity), (told.max(highest), whole));
            prop_assert!((truth..=peaks).contains(&one.max));
            // The average of each, added up.
            let average: f64 = servers.iter().map(|one| one.sum() as f64 / one.known as f64 / 1_000.0).sum();
            let shown = one.sum as f64 / one.possible as f64 * whole as f64;
            prop_assert!((shown - average).abs() <= average * 1e-6 + 1e-3, "{} {}", shown, average);
        }
        prop_assert_eq!(found.next(), None);
    }
}

/// Three and five connections, never at once.
fn two() -> [Part; 2] {
    [(3, 10), (5, 200)].map(|(level, at)| {
        let mut seconds = vec![1; LENGTH];
        seconds[at] = level;
        Part {
            protocol: TCP,
            seconds,
            above: 0,
            capacity: 20_000,
            told: true,
            known: 300,
        }
    })
}

#[test]
fn obs_1_what_an_older_server_does_not_tell_is_never_told_as_less() {
    let rows = two().map(|part| part.row(40_000));
    assert_eq!(merge(&rows)[0].max, 6);
    // As it comes from one that knows neither protocols nor lengths nor seconds.
    let mut older = serde_json::to_value(&rows[1]).unwrap();
    for key in ["length", "protocol", "whole", "seconds"] {
        assert!(
            older.as_object_mut().unwrap().remove(key).is_some(),
            "{key}"
        );
    }
    let older: Row = serde_json::from_value(older).unwrap();
    let found = merge(&[rows[0].clone(), older.clone()]);
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].max, found[0].capacity), (8, 40_000));
    assert_eq!(found[0].sum, u128::from(rows[0].sum + rows[1].sum));
    assert_eq!(found[0].possible, 300_000 * 40_000);
    // Alone it is what it was; with two protocols here it goes to both, and its time to one.
    assert_eq!(merge(std::slice::from_ref(&older))[0].max, 5);
    let mut udp = rows[0].clone();
    udp.protocol = UDP;
    let found = merge(&[rows[0].clone(), udp, older]);
    assert_eq!([found[0].max, found[1].max], [8, 8]);
    assert_eq!(found[1].sum, u128::from(rows[0].sum));
}

#[test]
fn hours_are_not_added_to_five_minutes() {
    let [five, mut hour] = two().map(|part| part.row(40_000));
    hour.length = 3_600;
    hour.possible *= 12;
    hour.seconds.clear();
    let found = merge(&[five.clone(), hour.clone()]);
    assert_eq!([found[0].max, found[1].max], [3, 5]);
    // An older server does not say what it is.
    (hour.length, hour.protocol) = (0, 0);
    let found = merge(&[five, hour]);
    assert_eq!([found[0].max, found[1].max], [3, 5]);
}
