//! Who owns which slices of an IPv4 egress IP (POOL-5): a pure function of shares, servers and what was.
//!
//! Slices are apportioned to data centers by their shares (highest averages, divisors 1, 3, 5, ...: a data center
//! never loses slices because its own share rises), and evenly to the servers of each. Then every server keeps
//! what it has as far as its number allows, and only the rest is given anew. So from a given division no other one
//! with these numbers is reached by fewer moves.
//!
//! Without a division to start from, each slice goes to the server that has the highest score for it among those
//! that have room. The scores depend on names alone, so all servers that read the same placement come to the same
//! division, in whatever order it is written.

use crate::port::{ALL_SLICES, SLICES};
use crate::siphash::{Secret, siphash};

/// The most a share may be; plenty to express any division of 31 slices.
pub const MAX_SHARE: u32 = 1000;

/// The same everywhere: servers have to agree, and nothing is to be guessed.
const AGREED: Secret = Secret { k0: 0, k1: 0 };

/// A data center with a part of the address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// A digest of its name, unique among groups.
    pub name: u64,
    /// Its weight, at most [`MAX_SHARE`].
    pub share: u32,
    /// Result: how many slices it got.
    pub slices: u32,
}

/// A server that may own slices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Member {
    /// A digest of its name, unique among members.
    pub name: u64,
    /// Index of its data center among the groups.
    pub group: usize,
    /// The slices it owns (bit k is slice k): those of before, then the result.
    pub owned: u32,
    /// Result: how many slices it got.
    pub slices: u32,
}

/// A digest of a name, for [`Group::name`] and [`Member::name`].
pub fn digest(name: &str) -> u64 {
    let mut digest = siphash(AGREED, [name.len() as u64]);
    for byte in name.bytes() {
        digest = siphash(AGREED, [digest, byte as u64]);
    }
    digest
}

/// Divides the slices of `address` among `members`.
///
/// What members own at the call is the division of before; zeros, if there was none. Where no data center has both
/// a share and a server, nobody owns anything.
pub fn divide(address: u32, groups: &mut [Group], members: &mut [Member]) {
    let mut taken = 0;
    for member in members.iter_mut() {
        // What two claim is the first one's.
        member.owned &= ALL_SLICES & !taken;
        taken |= member.owned;
        member.slices = 0;
    }
    apportion(address, groups, members);
    for at in 0..groups.len() {
        let Some(group) = groups.get(at) else { break };
        spread(address, at, group.slices, members);
    }
    for member in members.iter_mut() {
        while member.owned.count_ones() > member.slices {
            let lowest = slices(member.owned).min_by_key(|slice| score(address, member, *slice));
            member.owned &= !lowest.map_or(member.owned, |slice| 1 << slice);
        }
    }
    fill(address, members);
}

/// How many slices each group gets.
fn apportion(address: u32, groups: &mut [Group], members: &[Member]) {
    for group in groups.iter_mut() {
        group.slices = 0;
    }
    for _ in 0..SLICES {
        let mut best: Option<(Claim, usize)> = None;
        for (at, group) in groups.iter().enumerate() {
            let of_group = || members.iter().filter(|member| member.group == at);
            if group.share == 0 || of_group().next().is_none() {
                continue;
            }
            // One more each in turn: whose turn it is keeps a slice if it had more than it has been given.
            let servers = of_group().count() as u32;
            let (each, given) = (group.slices / servers, group.slices % servers);
            let keepers = of_group().filter(|member| member.owned.count_ones() > each);
            let claim = Claim {
                share: group.share.min(MAX_SHARE),
                divisor: 2 * group.slices + 1,
                keeps: keepers.count() as u32 > given,
                rank: siphash(AGREED, [address as u64, group.name]),
            };
            if best.is_none_or(|(other, _)| claim.beats(&other)) {
                best = Some((claim, at));
            }
        }
        let Some((_, at)) = best else { return };
        if let Some(group) = groups.get_mut(at) {
            group.slices += 1;
        }
    }
}

/// A data center's claim to the next slice.
#[derive(Clone, Copy)]
struct Claim {
    share: u32,
    divisor: u32,
    /// Whether one of its servers would keep a slice by it.
    keeps: bool,
    rank: u64,
}

impl Claim {
    fn beats(&self, other: &Self) -> bool {
        // Fractions, by cross-multiplication: at most 1000 times 63.
        let (mine, theirs) = (self.share * other.divisor, other.share * self.divisor);
        (mine, self.keeps, self.rank) > (theirs, other.keeps, other.rank)
    }
}

/// How many of a group's slices each of its members gets: the same number, or one more.
fn spread(address: u32, group: usize, slices: u32, members: &mut [Member]) {
    for _ in 0..slices {
        let next = members
            .iter_mut()
            .filter(|member| member.group == group)
            .max_by_key(|member| {
                (
                    core::cmp::Reverse(member.slices),
                    member.owned.count_ones() > member.slices,
                    siphash(AGREED, [address as u64, member.name]),
                )
            });
        if let Some(member) = next {
            member.slices += 1;
        }
    }
}

/// Gives what nobody owns to members that have room.
fn fill(address: u32, members: &mut [Member]) {
    let owned = members.iter().fold(0, |all, member| all | member.owned);
    let mut free = ALL_SLICES & !owned;
    while free != 0 {
        let mut best: Option<(u64, u32, usize)> = None;
        for (at, member) in members.iter().enumerate() {
            if member.owned.count_ones() >= member.slices {
                continue;
            }
            for slice in slices(free) {
                let score = score(address, member, slice);
                if best.is_none_or(|(other, ..)| score > other) {
                    best = Some((score, slice, at));
                }
            }
        }
        let Some((_, slice, at)) = best else { return };
        free &= !(1 << slice);
        if let Some(member) = members.get_mut(at) {
            member.owned |= 1 << slice;
        }
    }
}

/// How much a member is the one for a slice.
fn score(address: u32, member: &Member, slice: u32) -> u64 {
    siphash(AGREED, [address as u64, member.name, slice as u64])
}

/// The slices of a bitmap.
pub fn slices(bitmap: u32) -> impl Iterator<Item = u32> {
    (1..=SLICES).filter(move |slice| bitmap >> slice & 1 == 1)
}

#[cfg(test)]
mod tests;
