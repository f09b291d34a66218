// SPDX-License-Identifier: GPL-2.0

//! Who gets room, and when, with no ring behind it.

use super::{
    line::{
        Line,
        Place,
        Waiter,
        SWEPT_AT, //
    },
    quota::{
        Part,
        RingQuota, //
    },
    room::Room, //
};
use kernel::{
    prelude::*,
    rbtree::RBTreeNodeReservation,
    sync::{
        atomic::ordering::Relaxed,
        Arc, //
    },
};

#[kunit_tests(virtgpu_userptr_credit)]
mod tests {
    use super::*;

    /// A ring, and who waits for room in it.
    struct Ring {
        room: Room,
        line: Line,
    }

    /// A waiter in line.
    struct Joined {
        waiter: Arc<Waiter>,
        place: Place,
    }

    impl Joined {
        fn served(&self) -> bool {
            self.waiter.got().is_some()
        }
    }

    impl Ring {
        /// A ring of 256: 208 descriptors for all, 32 for files with nothing in it, 16 are kept. A
        /// file gets 64.
        fn new() -> Self {
            let room = Room::new();
            room.start(256, false, None);
            Self {
                room,
                line: Line::new(),
            }
        }

        fn join(&mut self, quota: &Arc<RingQuota>, slots: usize) -> Result<Joined> {
            let waiter = Waiter::new(slots)?;
            let node = RBTreeNodeReservation::new(GFP_KERNEL)?;
            let place = self.room.queue(&mut self.line, quota, waiter.clone(), node);
            self.room.serve(&mut self.line);
            Ok(Joined { waiter, place })
        }

        fn return_to_quota(&mut self, quota: &Arc<RingQuota>, slots: usize) {
            self.room
                .return_to_quota(&mut self.line, quota, slots, Part::Common);
            self.room.serve(&mut self.line);
        }

        /// Files that fill the common part of the ring.
        fn fill(&self) -> Result<[Arc<RingQuota>; 4]> {
            let files = [
                RingQuota::new()?,
                RingQuota::new()?,
                RingQuota::new()?,
                RingQuota::new()?,
            ];
            for (file, slots) in files.iter().zip([64, 64, 64, 16]) {
                for _ in 0..slots {
                    assert_eq!(self.room.try_take(file, 1), Ok(Part::Common));
                }
            }
            Ok(files)
        }
    }

    #[test]
    fn a_file_has_a_quarter() -> Result {
        let mut ring = Ring::new();
        let file = RingQuota::new()?;
        assert_eq!(ring.room.try_take(&file, 64), Ok(Part::Common));
        assert_eq!(ring.room.try_take(&file, 1), Err(0));
        let waiting = ring.join(&file, 1)?;
        assert!(!waiting.served());
        // Others are not concerned.
        let other = RingQuota::new()?;
        assert_eq!(ring.room.try_take(&other, 3), Ok(Part::Common));
        ring.return_to_quota(&file, 1);
        assert!(waiting.served());
        Ok(())
    }

    /// Where bytes are limited, a long command takes the room of several.
    #[test]
    fn bytes_are_dealt_out_too() -> Result {
        let ring = Ring::new();
        ring.room.start(256, true, Some(256 << 15));
        assert_eq!(ring.room.slots_for(100, 1), 1);
        assert_eq!(ring.room.slots_for(100, 1 << 15), 1);
        assert_eq!(ring.room.slots_for(2, (1 << 15) + 1), 2);
        assert_eq!(ring.room.slots_for(2, 1 << 20), 32);
        ring.room.start(256, false, Some(256 << 15));
        assert_eq!(ring.room.slots_for(3, 1), 3);
        // A pool that is smaller than the ring.
        ring.room.start(256, true, Some(100));
        assert_eq!(ring.room.slots_for(2, 64), ring.room.limit());
        Ok(())
    }

    /// What a large command waits for is not given to small ones that come later.
    #[test]
    fn large_is_not_starved() -> Result {
        let mut ring = Ring::new();
        let files = ring.fill()?;
        let (large, small) = (RingQuota::new()?, RingQuota::new()?);
        assert_eq!(ring.room.try_take(&large, 40), Err(40));
        large.give(40);
        let first = ring.join(&large, 40)?;
        // It may have something in the ring, and so does not get what is kept for others.
        assert_eq!(ring.room.try_take(&small, 1), Ok(Part::First));
        assert_eq!(ring.room.try_take(&small, 1), Err(1));
        small.give(1);
        let second = ring.join(&small, 1)?;
        for _ in 0..39 {
            ring.return_to_quota(&files[0], 1);
            assert!(!first.served() && !second.served());
        }
        ring.return_to_quota(&files[0], 1);
        assert!(first.served() && !second.served());
        ring.return_to_quota(&files[1], 1);
        assert!(second.served());
        Ok(())
    }

    /// The commands of one file in their order, and files in turns.
    #[test]
    fn order() -> Result {
        let mut ring = Ring::new();
        let files = ring.fill()?;
        let (a, b) = (RingQuota::new()?, RingQuota::new()?);
        for file in [&a, &b] {
            assert_eq!(ring.room.try_take(file, 1), Ok(Part::First));
        }
        let joined = [
            ring.join(&a, 2)?,
            ring.join(&a, 1)?,
            ring.join(&a, 1)?,
            ring.join(&b, 1)?,
        ];
        let expected = [
            [false, false, false, false],
            [true, false, false, false],
            [true, false, false, true],
            [true, true, false, true],
            [true, true, true, true],
        ];
        for expected in expected {
            ring.return_to_quota(&files[0], 1);
            assert_eq!(joined.each_ref().map(Joined::served), expected);
        }
        Ok(())
    }

    /// A file at its limit loses its turn, and gets it back.
    #[test]
    fn others_go_first() -> Result {
        let mut ring = Ring::new();
        let files = ring.fill()?;
        let other = RingQuota::new()?;
        assert_eq!(ring.room.try_take(&other, 1), Ok(Part::First));
        let full = ring.join(&files[0], 1)?;
        let waits = ring.join(&other, 1)?;
        assert!(!full.served() && !waits.served());
        ring.return_to_quota(&files[1], 1);
        assert!(!full.served() && waits.served());
        ring.return_to_quota(&files[0], 1);
        assert!(full.served());
        Ok(())
    }

    /// A ring full of jobs that never end still has room for who has nothing in it.
    #[test]
    fn first_of_a_file() -> Result {
        let mut ring = Ring::new();
        let files = ring.fill()?;
        assert_eq!(ring.room.try_take(&files[3], 1), Err(1));
        files[3].give(1);
        let busy = ring.join(&files[3], 1)?;
        let mut news = KVec::new();
        for _ in 0..32 {
            let file = RingQuota::new()?;
            assert_eq!(ring.room.try_take(&file, 1), Ok(Part::First));
            news.push(file, GFP_KERNEL)?;
        }
        let late = RingQuota::new()?;
        let waits = ring.join(&late, 1)?;
        assert!(!busy.served() && !waits.served());
        let Ring { room, line } = &mut ring;
        room.return_to_quota(line, &news[0], 1, Part::First);
        room.serve(line);
        assert!(!busy.served() && waits.served());
        Ok(())
    }

    #[test]
    fn gives_up() -> Result {
        let mut ring = Ring::new();
        let files = ring.fill()?;
        let (large, small) = (RingQuota::new()?, RingQuota::new()?);
        for file in [&large, &small] {
            assert_eq!(ring.room.try_take(file, 1), Ok(Part::First));
        }
        let first = ring.join(&large, 40)?;
        let next = ring.join(&large, 1)?;
        let second = ring.join(&small, 1)?;
        ring.return_to_quota(&files[0], 2);
        assert!(!first.served() && !next.served() && !second.served());
        ring.room.leave(&mut ring.line, &large, first.place);
        ring.room.serve(&mut ring.line);
        assert!(next.served() && second.served());
        assert!(ring.line.waiters.is_empty());
        Ok(())
    }

    /// Those who have left the line do not stay in memory behind one who waits for long.
    #[test]
    fn left() -> Result {
        let mut ring = Ring::new();
        let files = ring.fill()?;
        let large = RingQuota::new()?;
        assert_eq!(ring.room.try_take(&large, 1), Ok(Part::First));
        let first = ring.join(&large, 40)?;
        for _ in 0..1000 {
            let file = RingQuota::new()?;
            assert_eq!(ring.room.try_take(&file, 33), Err(33));
            file.give(33);
            let joined = ring.join(&file, 33)?;
            ring.room.leave(&mut ring.line, &file, joined.place);
        }
        let (turns, idle) = (
            ring.line.turns.iter().count(),
            ring.line.idle.iter().count(),
        );
        assert!(turns + idle <= 2 * (SWEPT_AT + 2));
        ring.return_to_quota(&files[0], 40);
        assert!(first.served());
        assert_eq!(ring.line.waiting, 0);
        Ok(())
    }

    /// A command that took more than its room takes it from those who come later.
    #[test]
    fn overdrawn() -> Result {
        let mut ring = Ring::new();
        let files = ring.fill()?;
        ring.room.overdraw(Some(&files[3]), 0, 2);
        let other = RingQuota::new()?;
        assert_eq!(ring.room.try_take(&other, 1), Ok(Part::First));
        let waits = ring.join(&other, 1)?;
        ring.return_to_quota(&files[0], 2);
        assert!(!waits.served());
        ring.room.settle_overdraft(Some(&files[3]), 2);
        ring.return_to_quota(&files[3], 1);
        assert!(waits.served());
        assert_eq!(files[3].used.load(Relaxed), 15);
        Ok(())
    }

    /// What was kept for a file with nothing in the ring does not grow by what its command took
    /// from others.
    #[test]
    fn overdrawn_by_the_first() -> Result {
        let mut ring = Ring::new();
        let _files = ring.fill()?;
        let before = ring.room.first.0.load(Relaxed);
        let other = RingQuota::new()?;
        assert_eq!(ring.room.try_take(&other, 1), Ok(Part::First));
        ring.room.overdraw(Some(&other), 0, 4);
        let common = ring.room.common.0.load(Relaxed);
        ring.room.settle_overdraft(Some(&other), 4);
        ring.room
            .return_to_quota(&mut ring.line, &other, 1, Part::First);
        assert_eq!(ring.room.first.0.load(Relaxed), before);
        assert_eq!(ring.room.common.0.load(Relaxed), common + 4);
        assert_eq!(other.used.load(Relaxed), 0);
        Ok(())
    }

    /// What others have taken, and not used yet, is not there for a command without a table.
    #[test]
    fn beyond() -> Result {
        let mut ring = Ring::new();
        let files = ring.fill()?;
        assert!(!ring.room.take_beyond(3));
        ring.return_to_quota(&files[0], 4);
        let common = ring.room.common.0.load(Relaxed);
        assert!(ring.room.take_beyond(3));
        assert!(!ring.room.take_beyond(3));
        // It had a table after all.
        ring.room.overdraw(Some(&files[1]), 3, 0);
        assert_eq!(ring.room.common.0.load(Relaxed), common);
        assert!(ring.room.take_beyond(3));
        ring.room.overdraw(Some(&files[1]), 3, 3);
        assert_eq!(ring.room.common.0.load(Relaxed), common - 3);
        ring.room.settle_overdraft(Some(&files[1]), 3);
        assert_eq!(ring.room.common.0.load(Relaxed), common);
        assert_eq!(files[1].used.load(Relaxed), 64);
        Ok(())
    }
}
