//! The tag: reserved bits of the packet mark that say which zone a packet belongs to (ZONE-4).
//!
//! netfilter may rewrite a forwarded packet's source before the uplink sees it, so the zone is
//! decided where the packet enters and travels in the mark. The same bits say that a packet has
//! been dealt with, so that it passes the guard.

/// The most configurations whose "no zone" can be told apart.
const MOST_GENERATIONS: u32 = 1_024;

/// Where the tag stands in the mark.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TagField {
    /// The reserved bits; contiguous, at least eight.
    pub mask: u32,
    /// Position of the lowest reserved bit.
    pub shift: u32,
}

/// What a tag says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// Nothing: the zone has not been decided, or there is none.
    None,
    /// The packet entered by an inside interface and belongs to no zone. A value, not an absence: where
    /// somebody has rewritten the whole mark, the tag is missed instead of read as "no zone". With the generation of the
    /// configuration that said so, below [`TagField::generations`].
    Unbound(u32),
    /// The packet belongs to this zone.
    Zone(u16),
    /// The uplink's program has dealt with the packet: translated it, or let it pass.
    Done,
}

impl TagField {
    /// The field for a mask, or `None` if the mask is not one run of at least eight bits.
    pub const fn new(mask: u32) -> Option<Self> {
        if mask == 0 {
            return None;
        }
        let shift = mask.trailing_zeros();
        let run = mask >> shift;
        if run & run.wrapping_add(1) != 0 || run < 0xff {
            return None;
        }
        Some(Self { mask, shift })
    }

    /// Configurations whose "no zone" can be told apart, a power of two: 4 of eight bits, 1,024 of sixteen. A packet
    /// may wait on its way, for its next hop's ARP answer above all (3 s); that it was in no zone when it entered says
    /// nothing once another configuration is in force. As many changes later it would be believed again.
    #[inline(always)]
    pub const fn generations(self) -> u32 {
        let some = ((self.mask >> self.shift) >> 6) + 1;
        if some < MOST_GENERATIONS {
            some
        } else {
            MOST_GENERATIONS
        }
    }

    /// The lowest tag of those that are no zone's.
    #[inline(always)]
    const fn first_of_nobody(self) -> u32 {
        (self.mask >> self.shift) - self.generations()
    }

    /// The lowest mark of those, masked: from here on, the packet was in no zone or has been dealt with.
    #[inline(always)]
    pub const fn nobodys(self) -> u32 {
        self.first_of_nobody() << self.shift
    }

    /// The highest zone number this field can carry.
    #[inline(always)]
    pub const fn last_zone(self) -> u32 {
        let last = self.first_of_nobody() - 1;
        if last < u16::MAX as u32 {
            last
        } else {
            u16::MAX as u32
        }
    }

    /// Reads the tag of a mark.
    #[inline(always)]
    pub const fn read(self, mark: u32) -> Tag {
        let value = (mark & self.mask) >> self.shift;
        if value == 0 {
            Tag::None
        } else if value == self.mask >> self.shift {
            Tag::Done
        } else if value >= self.first_of_nobody() {
            Tag::Unbound((self.mask >> self.shift) - 1 - value)
        } else {
            Tag::Zone(value as u16)
        }
    }

    /// The mark with its tag replaced; the user's bits stay.
    #[inline(always)]
    pub const fn write(self, mark: u32, tag: Tag) -> u32 {
        let value = match tag {
            Tag::None => 0,
            Tag::Zone(zone) => ((zone as u32) << self.shift) & self.mask,
            Tag::Unbound(generation) => {
                self.mask - ((1 + (generation & (self.generations() - 1))) << self.shift)
            }
            Tag::Done => self.mask,
        };
        mark & !self.mask | value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn masks_must_be_one_run_of_eight_bits_or_more() {
        for bad in [0, 0x7f, 0xff00_ff00, 0x0101_0000, 0x8000_0000] {
            assert_eq!(TagField::new(bad), None, "{bad:#x}");
        }
        for good in [0xff, 0xffff_0000, 0x00ff_0000, 0x0fff_0000, u32::MAX] {
            assert!(TagField::new(good).is_some(), "{good:#x}");
        }
    }

    #[test]
    fn a_wider_field_tells_more_configurations_apart() {
        let of = |mask| TagField::new(mask).unwrap();
        assert_eq!(
            [0xff, 0x0fff_0000, 0xffff_0000, u32::MAX].map(|mask| of(mask).generations()),
            [4, 64, 1_024, 1_024]
        );
        assert_eq!(
            [0xff, 0xffff_0000].map(|mask| of(mask).last_zone()),
            [250, 64_510]
        );
    }

    proptest! {
        #[test]
        fn a_tag_survives_and_the_users_bits_too(mark: u32, bits in 8u32..=16, zone: u16, generation: u32) {
            let field = TagField::new(u32::MAX << (32 - bits)).unwrap();
            let zone = (zone as u32 % field.last_zone() + 1) as u16;
            let generation = generation % field.generations();
            for tag in [Tag::None, Tag::Unbound(generation), Tag::Zone(zone), Tag::Done] {
                let marked = field.write(mark, tag);
                prop_assert_eq!(field.read(marked), tag);
                prop_assert_eq!(marked & !field.mask, mark & !field.mask);
                let nobodys = matches!(tag, Tag::Unbound(_) | Tag::Done);
                prop_assert_eq!(marked & field.mask >= field.nobodys(), nobodys);
            }
        }
    }
}
