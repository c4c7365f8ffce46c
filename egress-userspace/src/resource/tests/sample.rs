//! The sample of the interface document.

/// The sample of the interface document, without the parts that this version refuses.
pub(super) const SAMPLE: &str = r#"
[[account]]
id = "7f8a5b0c3d2e4f60718293a4b5c6d7e8"
name = "acme"
egress_tcp = true
egress_udp = true

[[prefix]]                   # BYOIP: who may use it, and for what
cidr = "198.51.100.0/24"
account = "acme"
delegated_to = []
service = "cdn-egress"       # or "cdn-ingress"

[[pool]]
id = "partners"
account = "acme"
kind = "leased"              # or "byoip"
addresses = ["192.0.2.10", "192.0.2.11", "2001:db8:aa::/64"]
connections_per_origin = 40000    # 1 to 40000
use = "cdn"                  # or "gateway" (POOL-8)

[[zone]]
id = "023e105f4ecef8ad9ca31a8372d0c353"
name = "shop.example"
account = "acme"
sources = ["10.1.0.0/16"]    # any of: sources, marks, cgroups, interfaces
marks = [161, "0x50/0xf0"]
[zone.aegis]
enabled = true
pool_id = "partners"
"#;

/// The sample's policy.
pub(super) const POLICY: &str = r#"
[[policy]]                   # Gateway egress policy
name = "bank"
account = "acme"
precedence = 1000
traffic = "net.dst.ip in {203.0.113.0/24} and net.dst.port == 443"
egress = { ipv4 = "192.0.2.10", ipv4_fallback = "0.0.0.0", ipv6 = "2001:db8:aa::/64" }
"#;

/// The sample's servers and placements; the second address is added, since with several servers each has to be placed.
pub(super) const PLACED: &str = r#"
[[location]]                 # placement, for several servers
name = "frankfurt"
[[location.data_center]]
name = "fra01"
[[location.data_center.server]]
name = "fra01-s1"
number = 1
[[location]]
name = "amsterdam"
[[location.data_center]]
name = "ams01"
[[location.data_center.server]]
name = "ams01-s1"
number = 2

[[placement]]                # POOL-5: at most four locations an IPv4
address = "192.0.2.10"
shares = [ { data_center = "fra01", share = 3 }, { data_center = "ams01", share = 1 } ]
[[placement]]
address = "192.0.2.11"
shares = [ { data_center = "fra01", share = 1 } ]
"#;
