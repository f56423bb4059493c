//! What a pipe has not taken yet.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::RawFd;

use crate::driver::pipe;
use crate::py::{Obj, Visit};

/// `bytes` of this size and more are kept instead of copied.
const SHARED_FROM: usize = 16 * 1024;

/// The size up to which copies are gathered in one piece.
const PIECE: usize = 64 * 1024;

/// The pieces that one call writes: more than a pipe has room for.
const PIECES_PER_CALL: usize = 64;

/// Data in the order in which it was written.
#[derive(Default)]
pub(super) struct Unsent {
    pieces: RefCell<VecDeque<Piece>>,
    /// How much of the first piece is sent.
    start: Cell<usize>,
}

enum Piece {
    Copied(Vec<u8>),
    /// A `bytes` object, which cannot change.
    Shared(Obj),
}

impl Piece {
    fn as_slice(&self) -> &[u8] {
        match self {
            Piece::Copied(data) => data,
            Piece::Shared(data) => data.bytes().unwrap_or_default(),
        }
    }

    fn part(&self) -> IoSlice<'_> {
        IoSlice::new(self.as_slice())
    }
}

impl Unsent {
    /// Adds `data[start..]`. What is before `start` was sent, so nothing else waits unless it is 0.
    /// `immutable` is the object that the data belongs to, if it cannot change.
    pub fn push(&self, data: &[u8], start: usize, immutable: Option<&Obj>) {
        let rest = &data[start..];
        if rest.is_empty() {
            return;
        }
        let mut pieces = self.pieces.borrow_mut();
        match (immutable, pieces.back_mut()) {
            (Some(object), _) if rest.len() >= SHARED_FROM => {
                if pieces.is_empty() {
                    self.start.set(start);
                }
                pieces.push_back(Piece::Shared(object.clone()));
            }
            (_, Some(Piece::Copied(last))) if last.len() < PIECE => last.extend_from_slice(rest),
            _ => pieces.push_back(Piece::Copied(rest.to_vec())),
        }
    }

    /// Writes as much as there is room for, and returns how much that was.
    pub fn write_to(&self, fd: RawFd) -> io::Result<usize> {
        let written = {
            let pieces = self.pieces.borrow();
            let mut parts: Vec<_> = pieces.iter().take(PIECES_PER_CALL).map(Piece::part).collect();
            if let Some(first) = parts.first_mut() {
                first.advance(self.start.get());
            }
            pipe::write_vectored(fd, &parts)?
        };
        self.forget(written);
        Ok(written)
    }

    fn forget(&self, count: usize) {
        let mut pieces = self.pieces.borrow_mut();
        let mut rest = self.start.get() + count;
        let mut sent = Vec::new();
        while let Some(piece) = pieces.pop_front() {
            let size = piece.as_slice().len();
            if size > rest {
                pieces.push_front(piece);
                break;
            }
            rest -= size;
            sent.push(piece);
        }
        self.start.set(rest);
        drop(pieces);
        drop(sent);
    }

    pub fn clear(&self) {
        self.start.set(0);
        let pieces = self.pieces.take();
        drop(pieces);
    }

    pub fn traverse(&self, visit: &mut Visit) {
        if let Ok(pieces) = self.pieces.try_borrow() {
            for piece in pieces.iter() {
                if let Piece::Shared(data) = piece {
                    visit.obj(data);
                }
            }
        }
    }
}
