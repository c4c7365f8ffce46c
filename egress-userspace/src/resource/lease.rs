//! A lease: an address that the operator gave an account through the API, whether a pool has it already or not.

use serde::{Deserialize, Serialize};

use super::address::Address;

/// A leased address. Pools that are made through the API take theirs from these, or from BYOIP prefixes; a pool of the
/// resources file leases its addresses by naming them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// An IPv4 address, or a range of IPv6.
    pub address: Address,
    /// Whose it is, by id.
    pub account: String,
}
