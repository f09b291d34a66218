// SPDX-License-Identifier: GPL-2.0

//! Room in the ring for MAP and SPACE_CREATE, and who gets it.
//!
//! INVALIDATE, on which memory reclaim waits, is served after all that is in the ring before it. So
//! that one client's MAPs cannot delay it by a whole ring, a file has a quota, a quarter of the
//! room.
//!
//! Who finds no room waits in line with the others of the same file, and files have their turns,
//! one request at a time. A file whose quota does not allow its next request has no turn until it
//! gets something back. The request whose turn it is takes what becomes free, however much it
//! needs, and no one else does before it: so none starves because smaller ones are always easier to
//! please.

use super::{
    Crowd,
    Inner,
    Mirror,
    MAP_DESCRIPTORS,
    PLACES, //
};
use crate::transport::Transport;
use kernel::{
    list::{
        impl_list_arc_safe,
        impl_list_item,
        AtomicTracker,
        List,
        ListArc,
        ListLinks,
        TryNewListArc, //
    },
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNodeReservation, //
    },
    sync::{
        atomic::{
            ordering::{
                Acquire,
                Release, //
            },
            AtomicFlag, //
        },
        Arc,
        LockedBy, //
    }, //
};

/// A request for room.
pub(super) struct Waiter {
    /// Descriptors.
    slots: usize,
    /// They are its own. Set under the queue's lock.
    granted: AtomicFlag,
}

impl Waiter {
    /// Whether it has what it waits for.
    pub(super) fn is_granted(&self) -> bool {
        self.granted.load(Acquire)
    }
}

/// Memory for a waiter, allocated ahead.
pub(super) struct NewWaiter {
    waiter: Arc<Waiter>,
    node: RBTreeNodeReservation<u64, Arc<Waiter>>,
}

impl NewWaiter {
    /// For who needs `slots` descriptors.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(super) fn new(slots: usize) -> Result<Self> {
        let waiter = Waiter {
            slots,
            granted: AtomicFlag::new(false),
        };
        Ok(Self {
            waiter: Arc::new(waiter, GFP_KERNEL)?,
            node: RBTreeNodeReservation::new(GFP_KERNEL)?,
        })
    }

    /// What it will be.
    pub(super) fn waiter(&self) -> &Arc<Waiter> {
        &self.waiter
    }
}

/// What a file has and wants.
struct Line {
    /// Descriptors in use, and those of credits.
    used: usize,
    /// How often some of them came back.
    returned: u64,
    /// Descriptors in use, and those of credits, that are kept for exclusive pages.
    exclusive: usize,
    /// Those who wait, in the order in which they came.
    waiting: RBTree<u64, Arc<Waiter>>,
}

/// A file's part of the mirror queue.
#[pin_data]
pub(crate) struct MirrorQuota {
    line: LockedBy<Line, Inner>,
    /// Spaces that the file has.
    pub(super) spaces: LockedBy<usize, Inner>,
    #[pin]
    links: ListLinks,
    #[pin]
    tracker: AtomicTracker,
}

impl_list_arc_safe! {
    impl ListArcSafe<0> for MirrorQuota { tracked_by tracker: AtomicTracker; }
}
impl_list_item! {
    impl ListItem<0> for MirrorQuota { using ListLinks { self.links }; }
}

impl MirrorQuota {
    /// An unused quota of the mirror queue that belongs to `transport`, which may have none.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`].
    pub(crate) fn new(transport: &Transport) -> Result<Arc<Self>> {
        Self::of(&transport.mirror)
    }

    pub(super) fn of(mirror: &Mirror) -> Result<Arc<Self>> {
        let line = Line {
            used: 0,
            returned: 0,
            exclusive: 0,
            waiting: RBTree::new(),
        };
        Arc::pin_init(
            pin_init!(Self {
                line: LockedBy::new(&mirror.inner, line),
                spaces: LockedBy::new(&mirror.inner, 0),
                links <- ListLinks::new(),
                tracker <- AtomicTracker::new(),
            }),
            GFP_KERNEL,
        )
    }
}

/// The room, as part of what the queue's lock protects.
pub(super) struct Room {
    /// Descriptors for MAP and SPACE_CREATE in all, and those that are free.
    capacity: usize,
    free: usize,
    /// Files in line, in the order of their turns. One whose quota does not allow its next request
    /// is not there.
    turns: List<MirrorQuota>,
    next_number: u64,
}

impl Room {
    /// None at all.
    pub(super) const fn new() -> Self {
        Self {
            capacity: 0,
            free: 0,
            turns: List::new(),
            next_number: 0,
        }
    }

    /// There are `capacity` descriptors, all of them free.
    pub(super) fn set(&mut self, capacity: usize) {
        self.capacity = capacity;
        self.free = capacity;
    }

    /// Most descriptors of a file.
    pub(super) fn most(&self) -> usize {
        (self.capacity / 4).max(MAP_DESCRIPTORS).min(self.capacity)
    }

    /// Descriptors that are free.
    pub(super) fn free(&self) -> usize {
        self.free
    }

    /// Takes one of them, for a command that has no quota and does not wait for a turn.
    pub(super) fn take_one(&mut self) {
        self.free -= 1;
    }

    /// Takes that one back; [`Inner::grant`] gives it to others.
    pub(super) fn put_one(&mut self) {
        self.free += 1;
    }
}

/// Who gets room.
impl Inner {
    /// Descriptors that are free for files: not those that INVALIDATEs wait for. All that are on
    /// their way or wait for one have no more than their places.
    fn left(&self) -> usize {
        let claimed = self.invalidates_waiting.min(self.free_places.len());
        self.room.free.saturating_sub(claimed)
    }

    /// Changes whenever the device does something that those who wait in `quota`'s line profit
    /// from: anything, unless nothing but what the file itself has in the ring is in their way.
    pub(super) fn progress(&mut self, quota: &MirrorQuota) -> (bool, u64) {
        let (most, used) = (self.room.most(), self.used);
        let line = quota.line.access_mut(self);
        let (mut wanted, returned) = (line.used, line.returned);
        if let Some(first) = line.waiting.cursor_front_mut() {
            wanted += first.current().1.slots;
        }
        if wanted > most {
            (true, returned)
        } else {
            (false, used)
        }
    }

    /// Takes `slots` descriptors for `quota`, unless a waiter is to have them before.
    pub(super) fn take(&mut self, quota: &MirrorQuota, slots: usize) -> bool {
        let (free, most) = (self.left(), self.room.most());
        let others_wait = !self.room.turns.is_empty();
        let line = quota.line.access_mut(self);
        if others_wait || !line.waiting.is_empty() || line.used + slots > most || slots > free {
            return false;
        }
        line.used += slots;
        self.room.free -= slots;
        true
    }

    /// Takes `slots` of the descriptors that are kept for exclusive pages, of which a file has what
    /// a page needs, and no more: those who have nothing else to use are not to lose them to one
    /// that has.
    pub(super) fn take_exclusive(&mut self, quota: &MirrorQuota, slots: usize) -> bool {
        let Some(left) = self.exclusive_reserve.checked_sub(slots) else {
            return false;
        };
        let line = quota.line.access_mut(self);
        if line.exclusive > 0 {
            return false;
        }
        line.exclusive = slots;
        self.exclusive_reserve = left;
        true
    }

    /// Takes `slots` of these back.
    pub(super) fn return_exclusive(&mut self, quota: &MirrorQuota, slots: usize) {
        quota.line.access_mut(self).exclusive -= slots;
        self.exclusive_reserve += slots;
    }

    /// Has `new` wait for room for `quota`; returns its number. What there is by now is given out,
    /// perhaps to it.
    pub(super) fn wait_in_line(
        &mut self,
        quota: &Arc<MirrorQuota>,
        new: NewWaiter,
        granted: &mut u128,
    ) -> u64 {
        let number = self.room.next_number;
        self.room.next_number += 1;
        let NewWaiter { waiter, node } = new;
        let line = quota.line.access_mut(self);
        line.waiting.insert(node.into_node(number, waiter));
        self.have_turns(quota);
        self.grant(granted);
        number
    }

    /// Waiter `number` of `quota` waits no longer. Others may have waited for it.
    pub(super) fn leave(&mut self, quota: &Arc<MirrorQuota>, number: u64, granted: &mut u128) {
        let node = quota.line.access_mut(self).waiting.remove_node(&number);
        if node.is_some() {
            self.have_turns(quota);
            self.grant(granted);
        }
    }

    /// Takes `slots` descriptors of `quota` back; [`Inner::grant`] gives them to others.
    pub(super) fn return_to_quota(&mut self, quota: &Arc<MirrorQuota>, slots: usize) {
        let line = quota.line.access_mut(self);
        line.used -= slots;
        line.returned += 1;
        self.room.free += slots;
        self.have_turns(quota);
    }

    /// The file may have a turn, if anybody waits.
    fn have_turns(&mut self, quota: &Arc<MirrorQuota>) {
        if quota.line.access_mut(self).waiting.is_empty() {
            return;
        }
        // Otherwise it is in the list.
        if let Ok(quota) = ListArc::try_from_arc(quota.clone()) {
            self.room.turns.push_back(quota);
        }
    }

    /// Gives out what is free, and adds the places of those who got something to `granted`, which
    /// is a set of places of [`Mirror::room`].
    pub(super) fn grant(&mut self, granted: &mut u128) {
        while let Some(quota) = self.room.turns.pop_front() {
            let (free, most) = (self.left(), self.room.most());
            let line = quota.line.access_mut(self);
            let Some(first) = line.waiting.cursor_front_mut() else {
                continue;
            };
            let slots = first.current().1.slots;
            if line.used + slots > most {
                // Until something of it comes back.
                continue;
            }
            if slots > free {
                self.room.turns.push_front(quota);
                break;
            }
            let (_, node) = first.remove_current();
            line.used += slots;
            let more = !line.waiting.is_empty();
            self.room.free -= slots;
            let (number, waiter) = node.to_key_value();
            waiter.granted.store(true, Release);
            *granted |= Crowd::<PLACES>::place(number);
            if more {
                self.room.turns.push_back(quota);
            }
        }
    }
}

#[kunit_tests(virtgpu_userptr_room)]
mod tests {
    use super::*;

    /// Descriptors of a ring of 256 that MAP may have, and a file's quota of them.
    const CAPACITY: usize = 224;
    const MOST: usize = CAPACITY / 4;

    /// A queue without a device, and files that use it.
    struct Ring {
        mirror: Arc<Mirror>,
        files: [Arc<MirrorQuota>; 6],
    }

    /// A waiter.
    struct Waiting {
        file: usize,
        number: u64,
        waiter: Arc<Waiter>,
    }

    impl Ring {
        fn new(capacity: usize) -> Result<Self> {
            let mirror = Arc::pin_init(Mirror::new(), GFP_KERNEL)?;
            mirror.inner.lock().room.set(capacity);
            let file = || MirrorQuota::of(&mirror);
            let files = [file()?, file()?, file()?, file()?, file()?, file()?];
            Ok(Self { mirror, files })
        }

        fn take(&self, file: usize, slots: usize) -> bool {
            self.mirror.inner.lock().take(&self.files[file], slots)
        }

        fn wait(&self, file: usize, slots: usize) -> Result<Waiting> {
            let new = NewWaiter::new(slots)?;
            let waiter = new.waiter().clone();
            let (quota, mut granted) = (&self.files[file], 0);
            let number = self
                .mirror
                .inner
                .lock()
                .wait_in_line(quota, new, &mut granted);
            assert_eq!(waiter.is_granted(), granted != 0);
            Ok(Waiting {
                file,
                number,
                waiter,
            })
        }

        fn leave(&self, waiting: &Waiting) {
            let quota = &self.files[waiting.file];
            self.mirror
                .inner
                .lock()
                .leave(quota, waiting.number, &mut 0);
        }

        /// Returns the places of those who got something.
        fn return_to_quota(&self, file: usize, slots: usize) -> u128 {
            let mut inner = self.mirror.inner.lock();
            let mut granted = 0;
            inner.return_to_quota(&self.files[file], slots);
            inner.grant(&mut granted);
            granted
        }

        fn free(&self) -> usize {
            self.mirror.inner.lock().room.free()
        }

        /// The first four files have all there is.
        fn fill(&self) {
            (0..4).for_each(|file| assert!(self.take(file, MOST)));
            assert_eq!(self.free(), 0);
        }
    }

    impl Waiting {
        fn has_it(&self) -> bool {
            self.waiter.is_granted()
        }
    }

    #[test]
    fn a_file_has_a_share() -> Result {
        let ring = Ring::new(CAPACITY)?;
        assert!(ring.take(0, MOST - 3));
        assert!(!ring.take(0, 4));
        assert!(ring.take(0, 3));
        let first = ring.wait(0, 1)?;
        assert!(!first.has_it());
        // Not even half of the ring is in use, and others have what they want.
        assert!(ring.take(1, MOST));
        assert!(ring.take(2, 30));
        assert!(ring.return_to_quota(0, 1) != 0);
        assert!(first.has_it());
        assert_eq!(ring.free(), CAPACITY - 2 * MOST - 30);
        Ok(())
    }

    #[test]
    fn a_file_has_one_exclusive_page() -> Result {
        let ring = Ring::new(CAPACITY)?;
        let slots = MAP_DESCRIPTORS + 1;
        let take = |file: usize| {
            let mut inner = ring.mirror.inner.lock();
            inner.take_exclusive(&ring.files[file], slots)
        };
        let give_back = |file: usize, slots| {
            let mut inner = ring.mirror.inner.lock();
            inner.return_exclusive(&ring.files[file], slots);
        };
        ring.mirror.inner.lock().exclusive_reserve = 2 * slots;
        assert!(take(0));
        assert!(!take(0));
        assert!(take(1));
        assert!(!take(2));
        // The commands come back one by one.
        give_back(0, 1);
        assert!(!take(0) && !take(2));
        give_back(0, slots - 1);
        assert!(take(2));
        give_back(1, slots);
        assert!(take(0));
        Ok(())
    }

    #[test]
    fn a_small_ring_has_room_for_a_map() -> Result {
        for capacity in [MAP_DESCRIPTORS, 8, 32] {
            let ring = Ring::new(capacity)?;
            let most = ring.mirror.inner.lock().room.most();
            assert!(MAP_DESCRIPTORS <= most && most <= capacity);
            assert!(ring.take(0, MAP_DESCRIPTORS));
        }
        Ok(())
    }

    #[test]
    fn a_large_request_is_not_overtaken() -> Result {
        let ring = Ring::new(CAPACITY)?;
        ring.fill();
        let large = ring.wait(4, 30)?;
        let small = ring.wait(5, 3)?;
        for _ in 0..9 {
            assert_eq!(ring.return_to_quota(0, 3), 0);
            // Neither by those who wait nor by those who come.
            assert!(!ring.take(0, 3));
        }
        assert!(ring.return_to_quota(1, 3) != 0);
        assert!(large.has_it() && !small.has_it());
        assert!(ring.return_to_quota(1, 3) != 0);
        assert!(small.has_it());
        Ok(())
    }

    #[test]
    fn who_has_a_full_share_is_passed_over() -> Result {
        let ring = Ring::new(CAPACITY)?;
        ring.fill();
        let full = ring.wait(0, 6)?;
        let other = ring.wait(4, 6)?;
        ring.return_to_quota(1, 6);
        assert!(!full.has_it() && other.has_it());
        // What fits the quota comes after what does not.
        ring.return_to_quota(0, 3);
        let second = ring.wait(0, 3)?;
        assert!(!full.has_it() && !second.has_it());
        ring.return_to_quota(0, 3);
        assert!(full.has_it() && !second.has_it());
        ring.return_to_quota(0, 3);
        assert!(second.has_it());
        Ok(())
    }

    #[test]
    fn files_have_turns() -> Result {
        let ring = Ring::new(CAPACITY)?;
        ring.fill();
        let crowd = [ring.wait(4, 3)?, ring.wait(4, 3)?, ring.wait(4, 3)?];
        let one = ring.wait(5, 3)?;
        ring.return_to_quota(0, 3);
        assert!(crowd[0].has_it() && !one.has_it());
        ring.return_to_quota(0, 3);
        assert!(one.has_it() && !crowd[1].has_it());
        ring.return_to_quota(0, 6);
        assert!(crowd.iter().all(Waiting::has_it));
        Ok(())
    }

    #[test]
    fn who_leaves_is_not_waited_for() -> Result {
        let ring = Ring::new(CAPACITY)?;
        ring.fill();
        let (large, behind) = (ring.wait(4, 30)?, ring.wait(4, 3)?);
        let other = ring.wait(5, 3)?;
        ring.return_to_quota(0, 9);
        assert!(![&large, &behind, &other].iter().any(|w| w.has_it()));
        ring.leave(&large);
        assert!(!large.has_it() && behind.has_it() && other.has_it());
        assert_eq!(ring.free(), 3);
        // Also where there are no other waiters.
        let last = ring.wait(4, 30)?;
        ring.leave(&last);
        assert!(ring.take(5, 3));
        // Who has got something does not lose it by that.
        ring.leave(&behind);
        assert_eq!(ring.return_to_quota(4, 3), 0);
        assert_eq!(ring.free(), 3);
        Ok(())
    }

    #[test]
    fn an_invalidation_does_not_wait() -> Result {
        let ring = Ring::new(CAPACITY)?;
        ring.fill();
        let waiting = ring.wait(4, 2)?;
        ring.return_to_quota(0, 1);
        ring.mirror.inner.lock().room.take_one();
        ring.return_to_quota(0, 1);
        assert!(!waiting.has_it());
        let mut granted = 0;
        let mut inner = ring.mirror.inner.lock();
        inner.room.put_one();
        inner.grant(&mut granted);
        assert!(granted != 0 && waiting.has_it());
        Ok(())
    }

    #[test]
    fn what_an_invalidation_waits_for_is_left() -> Result {
        let ring = Ring::new(CAPACITY)?;
        ring.fill();
        let waiting = ring.wait(4, 2)?;
        {
            let mut inner = ring.mirror.inner.lock();
            inner.invalidates_waiting = 3;
            // There are commands for two of them.
            inner.free_places.push(0, GFP_ATOMIC)?;
            inner.free_places.push(1, GFP_ATOMIC)?;
        }
        assert_eq!(ring.return_to_quota(0, 3), 0);
        assert!(!ring.take(5, 1) && ring.free() == 3);
        assert!(ring.return_to_quota(0, 1) != 0 && waiting.has_it());
        assert_eq!(ring.free(), 2);
        ring.mirror.inner.lock().invalidates_waiting = 0;
        assert!(ring.take(5, 2));
        Ok(())
    }

    #[test]
    fn progress_is_what_helps() -> Result {
        let ring = Ring::new(CAPACITY)?;
        let progress = |file: usize| ring.mirror.inner.lock().progress(&ring.files[file]);
        assert!(ring.take(0, MOST));
        let _own = ring.wait(0, 3)?;
        let before = progress(0);
        // What the device does for others does not make room in this quota.
        ring.mirror.inner.lock().used += 1;
        assert!(ring.take(1, 3));
        ring.return_to_quota(1, 3);
        assert!(progress(0) == before);
        ring.return_to_quota(0, 1);
        assert!(progress(0) != before);
        // Where the ring is full, all does.
        (1..4).for_each(|file| assert!(ring.take(file, MOST)));
        let _other = ring.wait(4, 6)?;
        let before = progress(4);
        ring.mirror.inner.lock().used += 1;
        assert!(progress(4) != before);
        Ok(())
    }
}
