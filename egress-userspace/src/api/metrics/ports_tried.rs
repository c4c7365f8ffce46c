//! How many ports new connections tried: a histogram that the data plane keeps (CAP-8, OBS-3).

use std::fmt;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;

use super::{Labels, float};
use crate::dataplane::api::PortsTried;

/// Groups as the data plane has them, the last one without an end.
#[derive(Debug)]
pub(super) struct PortsHistogram(pub(super) Vec<PortsTried>);

impl EncodeMetric for PortsHistogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let sum = self.0.iter().map(|group| group.ports).sum();
        let count = self.0.iter().map(|group| group.flows).sum();
        let group = |group: &PortsTried| {
            // What the encoder takes for infinity.
            let most = group.most.map_or(f64::MAX, f64::from);
            (most, group.flows)
        };
        let groups: Vec<_> = self.0.iter().map(group).collect();
        encoder.encode_histogram::<Labels>(float(sum), count, &groups, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn groups_add_up_and_the_last_one_has_no_end() {
        let group = |most, flows, ports| PortsTried { most, flows, ports };
        let mut registry = Registry::default();
        registry.register(
            "tried",
            "Tried",
            PortsHistogram(vec![
                group(Some(1), 90, 90),
                group(Some(2), 5, 10),
                group(None, 1, 70),
            ]),
        );
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert_eq!(
            text,
            "# HELP tried Tried.\n\
             # TYPE tried histogram\n\
             tried_sum 170.0\n\
             tried_count 96\n\
             tried_bucket{le=\"1.0\"} 90\n\
             tried_bucket{le=\"2.0\"} 95\n\
             tried_bucket{le=\"+Inf\"} 96\n\
             # EOF\n"
        );
    }
}
