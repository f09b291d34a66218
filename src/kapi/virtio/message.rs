// SPDX-License-Identifier: GPL-2.0

//! Memory that travels through a virtqueue: a request and room for its response.

use crate::kapi::bindings;
use core::{
    cell::UnsafeCell,
    mem::MaybeUninit,
    ptr::NonNull, //
};
use kernel::{
    alloc::{
        flags::*,
        Flags, //
    },
    list::{
        impl_list_arc_safe,
        impl_list_item,
        ListArc,
        ListLinks, //
    },
    page::PAGE_SIZE,
    prelude::*, //
};

/// Most bytes of the fixed part of a request.
pub(crate) const REQUEST_MAX: usize = 128;
/// Most bytes of the fixed part of a response.
pub(crate) const RESPONSE_MAX: usize = 64;

/// The largest piece that is tried, and one that is to be had with some reclaim
/// (`PAGE_ALLOC_COSTLY_ORDER`), for a list of unknown length.
const CHUNK_MAX: usize = 4 << 20;
const CHUNK_EASY: usize = 32 << 10;
/// The first piece of a growing list: most are short.
const CHUNK_MIN: usize = 256;

/// What a pool of bounce buffers is given out in (`IO_TLB_SIZE`).
const BOUNCE_UNIT: usize = 2 << 10;

/// How many pieces the bytes of a message may have, and how long each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pieces {
    count: usize,
    len: usize,
}

impl Pieces {
    /// At most `count` pieces of at most `len` bytes, as [`Binding::max_piece`] has it; no less
    /// than [`CHUNK_MIN`].
    ///
    /// [`Binding::max_piece`]: super::Binding::max_piece
    pub(crate) const fn new(count: usize, len: usize) -> Self {
        let len = if len < CHUNK_MIN { CHUNK_MIN } else { len };
        // Records fill pieces, see `Chunks::append`.
        let len = 1 << len.ilog2();
        Self {
            count,
            len: if len < CHUNK_MAX { len } else { CHUNK_MAX },
        }
    }

    /// What is left when there are `used` pieces.
    fn left(self, used: usize) -> Self {
        Self {
            count: self.count.saturating_sub(used),
            ..self
        }
    }
}

/// Bytes in a few physically contiguous pieces.
///
/// Large pieces are taken if they are there for the asking. If not, pieces are as small as their
/// number allows, down to a page, and for those memory is reclaimed: what is low but can be
/// reclaimed suffices.
///
/// # Invariants
///
/// Every piece comes from `kmalloc()` and has at least one byte.
#[derive(Default)]
pub(crate) struct Chunks {
    /// Most have one piece, and need no list of them. It is no piece as long as it has no capacity.
    first: KVec<u8>,
    more: KVec<KVec<u8>>,
    len: usize,
    expected: usize,
}

impl Chunks {
    /// No bytes.
    pub(crate) const fn new() -> Self {
        Self::expecting(0)
    }

    /// No bytes yet, but about `len` to be appended.
    pub(crate) const fn expecting(len: usize) -> Self {
        Self {
            first: KVec::new(),
            more: KVec::new(),
            len: 0,
            expected: len,
        }
    }

    /// Room for `len` bytes, zeroed, in as few pieces as the memory allows.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if it would take more than `max`.
    pub(crate) fn zeroed(len: usize, max: Pieces) -> Result<Self> {
        let mut this = Self::new();
        let mut want = max.len;
        let mut left = len;
        while left > 0 {
            let needed = Self::needed(left, max.left(this.count())).ok_or(ENOMEM)?;
            let mut piece = Self::piece(left.min(want), needed, GFP_KERNEL_ACCOUNT | __GFP_ZERO)?;
            let take = piece.capacity().min(left);
            want = take;
            // SAFETY: The vector is empty, has room for as many bytes, and they were zeroed when it
            // was allocated.
            unsafe { piece.inc_len(take) };
            this.add(piece)?;
            left -= take;
        }
        Ok(this)
    }

    /// The size that pieces must have so that `len` bytes are no more than `max`.
    fn needed(len: usize, max: Pieces) -> Option<usize> {
        if max.count == 0 {
            return None;
        }
        let size = len.div_ceil(max.count).checked_next_power_of_two()?;
        (size <= max.len).then(|| size.max(PAGE_SIZE).min(max.len))
    }

    /// Adds a piece behind the others, with the bytes that it has.
    fn add(&mut self, piece: KVec<u8>) -> Result {
        let len = piece.len();
        if self.first.capacity() == 0 {
            self.first = piece;
        } else {
            self.more.push(piece, GFP_KERNEL)?;
        }
        self.len += len;
        Ok(())
    }

    /// A piece of `want` bytes, or of a smaller power of two, but not less than `needed` if that is
    /// less; allocated with these flags, which are those of [`GFP_KERNEL`] and others.
    fn piece(want: usize, needed: usize, flags: Flags) -> Result<KVec<u8>> {
        let mut want = want;
        loop {
            // Not worth reclaim: smaller pieces do.
            let easily = GFP_NOWAIT | __GFP_NOWARN | (flags & !GFP_KERNEL);
            if want <= needed {
                return Ok(KVec::with_capacity(want, flags)?);
            }
            if let Ok(piece) = KVec::with_capacity(want, easily) {
                return Ok(piece);
            }
            want = (want.next_power_of_two() / 2).max(needed);
        }
    }

    /// Appends `bytes`, which must fit a piece, growing by pieces that double in size up to 4 MiB.
    ///
    /// A record that is appended whole is never split between pieces if its length divides 256.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if there is no memory, [`E2BIG`] if it would take more than `max`.
    pub(crate) fn append(&mut self, bytes: &[u8], max: Pieces) -> Result {
        if bytes.len() > max.len {
            return Err(E2BIG);
        }
        let last = self.more.last().unwrap_or(&self.first);
        if last.capacity() - last.len() < bytes.len() {
            if self.count() >= max.count {
                return Err(E2BIG);
            }
            let missing = self.expected.saturating_sub(self.len);
            let want = self
                .len
                .max(missing)
                .max(bytes.len())
                .next_power_of_two()
                .clamp(CHUNK_MIN, max.len);
            let needed = match missing {
                // Longer than expected.
                0 => CHUNK_EASY.min(max.len),
                _ => Self::needed(missing, max.left(self.count())).unwrap_or(max.len),
            };
            let needed = needed.max(bytes.len());
            self.add(Self::piece(want, needed, GFP_KERNEL_ACCOUNT)?)?;
        }
        let last = self.more.last_mut().unwrap_or(&mut self.first);
        // As `extend_from_slice()`, which goes byte by byte.
        let room = last.spare_capacity_mut().get_mut(..bytes.len());
        let room = room.ok_or(EINVAL)?.as_mut_ptr().cast::<u8>();
        // SAFETY: There is room for the bytes, which are somewhere else, and then they are there.
        unsafe {
            room.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            last.inc_len(bytes.len());
        }
        self.len += bytes.len();
        Ok(())
    }

    /// Bytes in all.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The pieces.
    fn vectors(&self) -> impl Iterator<Item = &KVec<u8>> {
        let first = core::iter::once(&self.first);
        Iterator::chain(first, &self.more).take(self.count())
    }

    /// The pieces.
    #[cfg(CONFIG_KUNIT = "y")]
    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.vectors().map(|piece| piece.as_slice())
    }

    /// Addresses and lengths of the pieces: the device may write them at any time, so there must
    /// not be a reference to their bytes.
    fn raw_pieces(&self) -> impl Iterator<Item = (*const u8, usize)> + '_ {
        self.vectors().map(|piece| (piece.as_ptr(), piece.len()))
    }

    /// The pieces, to be filled.
    pub(crate) fn pieces_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let count = self.count();
        let first = core::iter::once(&mut self.first);
        Iterator::chain(first, &mut self.more)
            .take(count)
            .map(|piece| piece.as_mut_slice())
    }

    /// Number of pieces.
    pub(crate) fn count(&self) -> usize {
        usize::from(self.first.capacity() > 0) + self.more.len()
    }
}

/// Entries of a scatterlist that are on the stack; a message with more parts brings its own.
const SHORT_TABLE: usize = 4;

/// Room for a short scatterlist.
pub(super) type ShortTable = [MaybeUninit<bindings::scatterlist>; SHORT_TABLE];

/// Cache lines of its own, so that DMA to it disturbs nothing beside it. (Devices that are not
/// coherent with the caches go through the DMA API, which copies what shares a line.)
#[repr(C, align(64))]
struct Line<const N: usize>(UnsafeCell<[u8; N]>);

/// A request with room for its response, and data of the driver: `S` for all who have a
/// reference, `O` for the owner, which is the holder of the one [`ListArc`].
///
/// The device reads the fixed part of the request and then `payload`; it writes the fixed part of
/// the response and then `response_data`.
///
/// # Invariants
///
/// - `request_len <= REQUEST_MAX` and `response_len <= RESPONSE_MAX`. Only the owner of the
///   [`ListArc`] writes `request` or touches `sg` or `owned`; the device writes `response`, and the
///   bytes of `response_data`.
/// - `drop_token` is the first field, and is `drop_list_arc` of this type.
#[pin_data]
#[repr(C)]
pub(crate) struct Message<S, O> {
    drop_token: unsafe fn(NonNull<c_void>),
    request_len: usize,
    response_len: usize,
    payload: Chunks,
    response_data: Chunks,
    /// Room for the scatterlist, unless it is short.
    sg: UnsafeCell<KVec<bindings::scatterlist>>,
    request: Line<REQUEST_MAX>,
    response: Line<RESPONSE_MAX>,
    owned: UnsafeCell<O>,
    /// Data of the driver for all who have a reference.
    #[pin]
    pub(crate) shared: S,
    #[pin]
    links: ListLinks,
}

impl_list_arc_safe! {
    impl{S, O} ListArcSafe<0> for Message<S, O> { untracked; }
}
impl_list_item! {
    impl{S, O} ListItem<0> for Message<S, O> { using ListLinks { self.links }; }
}

// SAFETY: By the type invariant `request`, `sg` and `owned` are accessed by one owner at a time,
// and what the device writes is read with volatile accesses.
unsafe impl<S: Send, O: Send> Send for Message<S, O> {}

// SAFETY: As above; the other fields are only read through a shared reference.
unsafe impl<S: Sync, O: Send> Sync for Message<S, O> {}

/// Drops a message of which nothing is known but that it is one.
///
/// # Safety
///
/// `token` is what `ListArc::into_raw` has made of a `ListArc` of a [`Message`], and the caller
/// passes its ownership on.
pub(super) unsafe fn drop_token(token: NonNull<c_void>) {
    // SAFETY: By the type invariant a message begins with this field.
    let drop_token = unsafe { token.cast::<unsafe fn(NonNull<c_void>)>().read() };
    // SAFETY: By the type invariant this is the function for the message's type, and by the
    // requirements of this one the token is what it wants.
    unsafe { drop_token(token) }
}

/// As [`drop_token`], for a message of this type.
///
/// # Safety
///
/// As there.
unsafe fn drop_list_arc<S, O>(token: NonNull<c_void>) {
    // SAFETY: By the requirements of this function.
    drop(unsafe { ListArc::from_raw(token.cast::<Message<S, O>>().as_ptr().cast_const()) });
}

impl<S, O> Message<S, O> {
    /// A message whose response has a fixed part of `response_len` bytes. One without request is a
    /// buffer that the device fills unasked.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if a fixed part is too long, [`ENOMEM`].
    pub(crate) fn new(
        request: &[u8],
        payload: Chunks,
        response_len: usize,
        response_data: Chunks,
        shared: impl PinInit<S>,
        owned: O,
    ) -> Result<ListArc<Self>> {
        let request_len = request.len();
        if request_len > REQUEST_MAX || response_len > RESPONSE_MAX {
            return Err(EINVAL);
        }
        let descriptors = payload.count() + response_data.count() + 2;
        let sg = if descriptors > SHORT_TABLE {
            KVec::with_capacity(descriptors, GFP_KERNEL)?
        } else {
            KVec::new()
        };

        // INVARIANT: Both lengths were checked; the function is that of the type.
        let mut this = ListArc::pin_init(
            try_pin_init!(Self {
                drop_token: drop_list_arc::<S, O>,
                request: Line(UnsafeCell::new([0; REQUEST_MAX])),
                response: Line(UnsafeCell::new([0; RESPONSE_MAX])),
                request_len,
                response_len,
                payload,
                response_data,
                sg: UnsafeCell::new(sg),
                owned: UnsafeCell::new(owned),
                shared <- shared,
                links <- ListLinks::new(),
            }),
            GFP_KERNEL,
        )?;
        Self::patch_request(&mut this, 0, request);
        Ok(this)
    }

    /// The owner's data.
    pub(crate) fn owned(this: &mut ListArc<Self>) -> &mut O {
        // SAFETY: There is one `ListArc`, and no other reference.
        unsafe { &mut *this.owned.get() }
    }

    /// Descriptors that the message takes in a ring without indirect descriptors.
    pub(crate) fn descriptors(&self) -> usize {
        self.payload.count()
            + self.response_data.count()
            + usize::from(self.request_len > 0)
            + usize::from(self.response_len > 0)
    }

    /// Bytes that the message takes of the pool where the platform bounces: each part whole units,
    /// and the table of descriptors one.
    pub(crate) fn bytes(&self) -> usize {
        let fixed = [self.request_len, self.response_len].into_iter();
        let variable = Iterator::chain(self.payload.raw_pieces(), self.response_data.raw_pieces());
        let parts = Iterator::chain(fixed, variable.map(|(_, len)| len));
        BOUNCE_UNIT
            + parts
                .map(|len| len.next_multiple_of(BOUNCE_UNIT))
                .sum::<usize>()
    }

    /// Bytes that the device may write.
    pub(crate) fn writable_len(&self) -> usize {
        self.response_len + self.response_data.len()
    }

    /// Replaces bytes of the fixed part of the request, from `offset` on.
    ///
    /// Bytes beyond its end are dropped.
    pub(crate) fn patch_request(this: &mut ListArc<Self>, offset: usize, bytes: &[u8]) {
        let room = this.request_len.saturating_sub(offset);
        let bytes = bytes.get(..room).unwrap_or(bytes);
        let offset = offset.min(this.request_len);
        let base = this.request.0.get().cast::<u8>();
        // SAFETY: The bytes are within the array, by the above and the type invariant. There is one
        // `ListArc`, so no other thread accesses them, and while a driver holds it the message is
        // in no queue, so that the device does not read.
        unsafe {
            base.add(offset)
                .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len())
        };
    }

    /// Copies the fixed part of the response to `out`, as far as both go.
    ///
    /// The caller knows whether the device has written it. The device may go on writing
    /// although it said that it was done, hence the copy, and so only the copy may be validated.
    pub(crate) fn read_response(&self, out: &mut [u8]) {
        const WORD: usize = size_of::<u64>();
        const _: () = assert!(RESPONSE_MAX % WORD == 0);
        let base = self.response.0.get().cast::<u64>();
        let len = out.len().min(self.response_len);
        for (i, bytes) in out[..len].chunks_mut(WORD).enumerate() {
            // SAFETY: The word is within the array, which is whole words and aligned, by the type
            // invariant. Nothing but the device writes it, and a volatile read tolerates that.
            let word = unsafe { base.add(i).read_volatile() };
            bytes.copy_from_slice(&word.to_ne_bytes()[..bytes.len()]);
        }
    }

    /// Copies the variable part of the response, from its start, to `out`.
    pub(crate) fn read_data(&self, out: &mut [u8]) {
        let mut left = out;
        for (base, len) in self.response_data.raw_pieces() {
            let (part, rest) = left.split_at_mut(len.min(left.len()));
            for (i, byte) in part.iter_mut().enumerate() {
                // SAFETY: `i` is within the piece. Nothing but the device writes it, and a volatile
                // read of a byte tolerates that.
                *byte = unsafe { base.add(i).read_volatile() };
            }
            left = rest;
        }
    }

    /// Fills the scatterlist. Returns it, and how many of its entries the device reads and writes.
    ///
    /// The pointer is valid as long as the message and `short` are.
    pub(super) fn scatterlist(
        this: &mut ListArc<Self>,
        short: &mut ShortTable,
    ) -> (*mut bindings::scatterlist, usize, usize) {
        let outs = usize::from(this.request_len > 0) + this.payload.count();
        let ins = usize::from(this.response_len > 0) + this.response_data.count();
        // SAFETY: The caller has the one `ListArc`, and nothing else touches `sg`.
        let sg = unsafe { &mut *this.sg.get() };
        let room = match outs + ins {
            ..=SHORT_TABLE => short.as_mut_slice(),
            _ => sg.spare_capacity_mut(),
        };
        let table = room.as_mut_ptr().cast::<bindings::scatterlist>();

        let request = this.request.0.get().cast::<u8>().cast_const();
        let response = this.response.0.get().cast::<u8>().cast_const();
        // `pin_init::Init` has a `chain` as well.
        let out_bytes = Iterator::chain(
            core::iter::once((request, this.request_len)).filter(|(_, len)| *len > 0),
            this.payload.raw_pieces(),
        );
        let in_bytes = Iterator::chain(
            core::iter::once((response, this.response_len)).filter(|(_, len)| *len > 0),
            this.response_data.raw_pieces(),
        );

        // SAFETY: There is room for all entries: a short table has it, and for others `new`
        // reserved it, and never pushed any. The addresses are those of `kmalloc()` memory, the
        // `Arc`'s own or a piece's.
        unsafe {
            if outs > 0 {
                bindings::sg_init_table(table, outs as c_uint);
            }
            if ins > 0 {
                bindings::sg_init_table(table.add(outs), ins as c_uint);
            }
            for (i, (addr, len)) in Iterator::chain(out_bytes, in_bytes).enumerate() {
                bindings::kapi_sg_set_buf(table.add(i), addr.cast(), len as c_uint);
            }
        }
        (table, outs, ins)
    }
}

#[kunit_tests(virtgpu_userptr_message)]
mod tests {
    use super::*;

    const SHORT: usize = 64 << 10;

    #[test]
    fn pieces_are_as_long_as_may_be() -> Result {
        // As long as the platform maps at once, however much memory there is.
        let chunks = Chunks::zeroed(10 * SHORT + 1, Pieces::new(20, SHORT + 5))?;
        assert_eq!(chunks.len(), 10 * SHORT + 1);
        assert!(chunks.pieces().all(|piece| piece.len() <= SHORT));
        let mut chunks = Chunks::expecting(10 * SHORT);
        for _ in 0..10 * SHORT / 16 {
            chunks.append(&[1; 16], Pieces::new(20, SHORT))?;
        }
        assert!(chunks.pieces().all(|piece| piece.len() <= SHORT));
        assert_eq!(
            chunks.append(&[1; 2 * SHORT], Pieces::new(20, SHORT)),
            Err(E2BIG)
        );
        // At least so that something can be said.
        assert_eq!(Pieces::new(1, 0), Pieces::new(1, CHUNK_MIN));
        assert_eq!(Pieces::new(1, usize::MAX), Pieces::new(1, CHUNK_MAX));
        Ok(())
    }

    #[test]
    fn append_keeps_records_whole() -> Result {
        let mut chunks = Chunks::new();
        for i in 0..5000u32 {
            let mut record = [0; 16];
            record[..4].copy_from_slice(&i.to_ne_bytes());
            chunks.append(&record, Pieces::new(62, usize::MAX))?;
        }
        assert_eq!(chunks.len(), 80_000);
        assert!(chunks.pieces().all(|piece| piece.len() % 16 == 0));
        let ordered = chunks
            .pieces()
            .flat_map(|piece| piece.chunks(16))
            .enumerate()
            .all(|(i, record)| record[..4] == (i as u32).to_ne_bytes());
        assert!(ordered);
        Ok(())
    }

    #[test]
    fn append_is_bounded() -> Result {
        let mut chunks = Chunks::new();
        let mut outcome = Ok(());
        // Two pieces hold a few hundred bytes.
        for _ in 0..100_000 {
            outcome = chunks.append(&[0; 16], Pieces::new(2, usize::MAX));
            if outcome.is_err() {
                break;
            }
        }
        assert_eq!(outcome, Err(E2BIG));
        assert_eq!(chunks.count(), 2);
        Ok(())
    }

    #[test]
    fn pieces_are_small_if_they_may() {
        assert_eq!(
            Chunks::needed(1, Pieces::new(1, usize::MAX)),
            Some(PAGE_SIZE)
        );
        assert_eq!(
            Chunks::needed(100 * PAGE_SIZE, Pieces::new(100, usize::MAX)),
            Some(PAGE_SIZE)
        );
        assert_eq!(
            Chunks::needed(100 * PAGE_SIZE + 1, Pieces::new(100, usize::MAX)),
            Some(2 * PAGE_SIZE)
        );
        assert_eq!(
            Chunks::needed(1 << 20, Pieces::new(126, usize::MAX)),
            Some(16 << 10)
        );
        assert_eq!(
            Chunks::needed(126 * CHUNK_MAX, Pieces::new(126, usize::MAX)),
            Some(CHUNK_MAX)
        );
        assert_eq!(
            Chunks::needed(126 * CHUNK_MAX + 1, Pieces::new(126, usize::MAX)),
            None
        );
        assert_eq!(Chunks::needed(1, Pieces::new(0, usize::MAX)), None);
        assert_eq!(Chunks::needed(usize::MAX, Pieces::new(1, usize::MAX)), None);
    }

    #[test]
    fn zeroed() -> Result {
        let chunks = Chunks::zeroed(100_000, Pieces::new(4, usize::MAX))?;
        assert_eq!(chunks.len(), 100_000);
        assert!(chunks.count() <= 4);
        assert!(chunks.pieces().flatten().all(|&byte| byte == 0));
        assert_eq!(Chunks::zeroed(0, Pieces::new(0, usize::MAX))?.count(), 0);
        Ok(())
    }

    #[test]
    fn patch_stays_inside() -> Result {
        let mut message = Message::new(
            &[1; 24],
            Chunks::new(),
            24,
            Chunks::new(),
            pin_init::init_zeroed::<u32>(),
            (),
        )?;
        Message::patch_request(&mut message, 20, &[2; 100]);
        assert_eq!(message.descriptors(), 2);
        assert_eq!(message.writable_len(), 24);
        assert_eq!(message.bytes(), 3 * BOUNCE_UNIT);
        let request = message.request.0.get().cast::<u8>();
        // SAFETY: The array is longer, and there is no other reference to the message.
        let (inside, outside) = unsafe { (request.add(23).read(), request.add(24).read()) };
        assert_eq!((inside, outside), (2, 0));
        Ok(())
    }

    #[test]
    fn too_long() {
        let long = [0; REQUEST_MAX + 1];
        let message = Message::new(
            &long,
            Chunks::new(),
            0,
            Chunks::new(),
            pin_init::init_zeroed::<u32>(),
            (),
        );
        assert!(message.is_err());
    }
}
