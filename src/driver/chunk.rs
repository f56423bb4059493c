//! Memory that the kernel receives into: a ring of buffers that several receive operations share.
//!
//! Each buffer is filled bit by bit (`IOU_PBUF_RING_INC`, io_uring_register(2)), so small messages
//! do not use one up each. A [`Chunk`] is what one completion has brought. A buffer goes back to
//! the kernel once it is full and its last chunk is dropped.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::ops::Deref;
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::slice;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;
use io_uring::{Submitter, cqueue};

/// How many buffers: a power of two.
const COUNT: u16 = 8;
/// Bytes in each.
const SIZE: usize = 256 * 1024;
/// The ring of entries has a page of its own, before the buffers.
const PAGE: usize = 4096;
const MAPPED: usize = PAGE + COUNT as usize * SIZE;

/// The buffers' id of the kernel.
pub(super) const GROUP: u16 = 0;

/// linux/io_uring.h; the io-uring crate keeps it to itself.
const IOU_PBUF_RING_INC: u16 = 2;

/// The buffers of one ring. They outlive it for as long as there are chunks.
pub(super) struct Buffers {
    mapping: NonNull<u8>,
    tail: Cell<u16>,
    states: [Cell<State>; COUNT as usize],
    /// Buffers that the kernel has.
    free: Cell<u16>,
    /// The kernel may still write to them: never unmap.
    leaked: Cell<bool>,
}

/// What has come of a buffer since the kernel got it.
#[derive(Clone, Copy, Default)]
struct State {
    /// Bytes received.
    filled: u32,
    /// Chunks that refer to it.
    chunks: u32,
    /// The kernel is done with it.
    full: bool,
}

impl Buffers {
    /// Gives new buffers to a ring.
    ///
    /// # Errors
    /// `EINVAL` before Linux 6.12, which cannot fill buffers bit by bit; those of mmap(2).
    pub fn register(submitter: &Submitter<'_>) -> io::Result<Rc<Self>> {
        let (access, kind) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: asks for new memory, wherever the kernel likes.
        let mapping = unsafe { libc::mmap(ptr::null_mut(), MAPPED, access, kind, -1, 0) };
        let mapping = match NonNull::new(mapping.cast::<u8>()) {
            Some(mapping) if mapping.as_ptr().cast() != libc::MAP_FAILED => mapping,
            _ => return Err(io::Error::last_os_error()),
        };
        let buffers = Rc::new(Buffers {
            mapping,
            tail: Cell::new(0),
            states: Default::default(),
            free: Cell::new(0),
            leaked: Cell::new(false),
        });
        let address = mapping.as_ptr() as u64;
        // SAFETY: the entries' page stays mapped until the ring is closed: whoever owns the ring
        // closes it before it drops the buffers, and leaks them where operations are left.
        unsafe {
            submitter.register_buf_ring_with_flags(address, COUNT, GROUP, IOU_PBUF_RING_INC)?;
        }
        (0..COUNT).for_each(|index| buffers.provide(index));
        Ok(buffers)
    }

    /// Whether a receive operation would find room.
    pub fn has_room(&self) -> bool {
        self.free.get() > 0
    }

    /// The kernel may go on writing to them after the ring is closed.
    pub fn leak(&self) {
        self.leaked.set(true);
    }

    /// What a completion has brought, given its result and flags.
    pub fn chunk(self: &Rc<Self>, result: i32, flags: u32) -> Option<Chunk> {
        let index = cqueue::buffer_select(flags)?;
        let state = self.states.get(usize::from(index))?;
        let State { filled, chunks, .. } = state.get();
        let len = (SIZE as u32).saturating_sub(filled).min(result.max(0) as u32);
        let full = !cqueue::buffer_more(flags);
        state.set(State { filled: filled + len, chunks: chunks + 1, full });
        if full {
            self.free.set(self.free.get() - 1);
        }
        Some(Chunk { source: Some((Rc::clone(self), index)), start: filled, len })
    }

    fn give_back(&self, index: u16) {
        let Some(place) = self.states.get(usize::from(index)) else { return };
        let mut state = place.get();
        state.chunks -= 1;
        place.set(state);
        if state.full && state.chunks == 0 {
            place.set(State::default());
            self.provide(index);
        }
    }

    /// Hands a buffer to the kernel.
    fn provide(&self, index: u16) {
        let entries = self.mapping.as_ptr().cast::<BufRingEntry>();
        let tail = self.tail.get();
        // SAFETY: the page holds COUNT entries, of plain integers. The kernel reads this one only
        // after the new tail; the tail itself lies in what is unused of the first entry, which the
        // setters leave alone.
        unsafe {
            let entry = &mut *entries.add(usize::from(tail % COUNT));
            entry.set_addr(self.buffer(index).as_ptr() as u64);
            entry.set_len(SIZE as u32);
            entry.set_bid(index);
            let shared = BufRingEntry::tail(entries).cast_mut();
            AtomicU16::from_ptr(shared).store(tail.wrapping_add(1), Ordering::Release);
        }
        self.tail.set(tail.wrapping_add(1));
        self.free.set(self.free.get() + 1);
    }

    fn buffer(&self, index: u16) -> NonNull<u8> {
        // SAFETY: the index is below COUNT, so this is within the mapping.
        unsafe { self.mapping.add(PAGE + usize::from(index) * SIZE) }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        if !self.leaked.get() {
            // SAFETY: the mapping is this value's own. The ring is closed and no operation is left
            // on it, or leak() was called; no chunk is left, since each keeps this value alive.
            unsafe { libc::munmap(self.mapping.as_ptr().cast(), MAPPED) };
        }
    }
}

/// Bytes that a receive operation has brought; none at the end of the stream. Where chunks are kept
/// for long, the operations of their driver run out of room: copy what is not used at once.
pub struct Chunk {
    source: Option<(Rc<Buffers>, u16)>,
    start: u32,
    len: u32,
}

impl Chunk {
    pub(super) fn empty() -> Self {
        Chunk { source: None, start: 0, len: 0 }
    }
}

impl Deref for Chunk {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        let Some((buffers, index)) = &self.source else { return &[] };
        // SAFETY: within the buffer, see Buffers::chunk. The kernel has written these bytes and
        // does not touch them again before the buffer is given back, when this chunk is dropped.
        unsafe {
            let first = buffers.buffer(*index).add(self.start as usize);
            slice::from_raw_parts(first.as_ptr(), self.len as usize)
        }
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if let Some((buffers, index)) = &self.source {
            buffers.give_back(*index);
        }
    }
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chunk({} bytes)", self.len)
    }
}
