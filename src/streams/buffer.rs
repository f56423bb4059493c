//! What a reader has received and nobody has read yet.

use crate::py::{Buffer as View, Gil, Obj, Result, ToObj, Visit};

/// Bytes in the order in which they came. As long as there is only what one read has brought, that
/// is kept as it is, and handed on whole if it is asked for whole.
#[derive(Default)]
pub struct Buffer {
    whole: Option<Obj>,
    joined: Vec<u8>,
    /// How much of either has been taken.
    start: usize,
    /// How much is left of it.
    length: usize,
    /// The content as a `bytearray` that others have, and may have changed.
    lent: Option<Obj>,
}

impl Buffer {
    pub fn len(&self) -> usize {
        self.length
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn as_slice(&self) -> &[u8] {
        let all = self
            .whole
            .as_ref()
            .map_or(self.joined.as_slice(), |whole| whole.bytes().unwrap_or_default());
        &all[self.start..]
    }

    /// Adds an exact `bytes`.
    pub fn push(&mut self, data: Obj) {
        if self.is_empty() {
            let length = data.bytes().map_or(0, <[u8]>::len);
            *self = Buffer { whole: Some(data), length, ..Buffer::default() };
            return;
        }
        if self.whole.is_some() {
            let joined = self.as_slice().to_vec();
            *self = Buffer { joined, length: self.length, ..Buffer::default() };
        } else if self.start > self.joined.len() / 2 {
            self.joined.drain(..self.start);
            self.start = 0;
        }
        self.joined.extend_from_slice(data.bytes().unwrap_or_default());
        self.length = self.joined.len() - self.start;
    }

    /// The content as a `bytearray`. What is done to that counts until it is recalled.
    pub fn lend(&mut self, gil: Gil) -> Result<Obj> {
        let lent = Obj::bytearray(gil, self.as_slice())?;
        self.lent = Some(lent.clone());
        Ok(lent)
    }

    /// Goes on with the content that was lent.
    #[inline]
    pub fn recall(&mut self) {
        if let Some(lent) = self.lent.take() {
            let joined =
                View::get(&lent).map_or_else(|_| Vec::new(), |view| view.as_slice().to_vec());
            let length = joined.len();
            *self = Buffer { joined, length, ..Buffer::default() };
        }
    }

    pub fn traverse(&self, visit: &mut Visit) {
        self.whole.iter().chain(&self.lent).for_each(|obj| visit.obj(obj));
    }

    /// Takes up to `count` bytes off the start.
    pub fn take(&mut self, gil: Gil, count: usize) -> Result<Obj> {
        let length = self.len();
        if count >= length && self.start == 0 && self.whole.is_some() {
            self.length = 0;
            return self.whole.take().map_or_else(|| b"".to_obj(gil), Ok);
        }
        let count = count.min(length);
        let taken = self.as_slice()[..count].to_obj(gil)?;
        self.skip(count);
        Ok(taken)
    }

    pub fn skip(&mut self, count: usize) {
        if count >= self.len() {
            *self = Buffer::default();
        } else {
            self.start += count;
            self.length -= count;
        }
    }
}
