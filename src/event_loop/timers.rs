//! Timers that wait: a binary heap with removal, so that a cancelled timer costs nothing later.

use crate::py::Ref;

use super::Handle;

#[derive(Default)]
pub struct Timers {
    heap: Vec<Entry>,
    /// Numbers the timers, so that equal times run in the order of their creation.
    next: u64,
}

struct Entry {
    when: f64,
    number: u64,
    handle: Ref<Handle>,
}

impl Entry {
    fn before(&self, other: &Entry) -> bool {
        self.when.total_cmp(&other.when).then(self.number.cmp(&other.number)).is_lt()
    }
}

impl Timers {
    pub fn push(&mut self, handle: Ref<Handle>) {
        // Not a number is due at once, for want of a better time; it would confound the order.
        let when = if handle.when().is_nan() { f64::NEG_INFINITY } else { handle.when() };
        let entry = Entry { when, number: self.next, handle };
        self.next += 1;
        self.heap.push(entry);
        self.sift_up(self.heap.len() - 1);
    }

    /// When the earliest timer is due, in seconds of the loop's clock.
    pub fn earliest(&self) -> Option<f64> {
        self.heap.first().map(|entry| entry.when)
    }

    /// Takes the earliest timer if it is due before `end`.
    pub fn pop_before(&mut self, end: f64) -> Option<Ref<Handle>> {
        if self.heap.first()?.when < end { self.remove_at(0) } else { None }
    }

    /// Takes a timer out, wherever it is.
    pub fn remove(&mut self, handle: &Ref<Handle>) -> Option<Ref<Handle>> {
        self.remove_at(handle.heap_index.get()? as usize)
    }

    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Takes every timer out.
    pub fn drain(&mut self) -> Vec<Ref<Handle>> {
        self.heap
            .drain(..)
            .map(|entry| {
                entry.handle.heap_index.set(None);
                entry.handle
            })
            .collect()
    }

    pub fn handles(&self) -> impl Iterator<Item = &Ref<Handle>> {
        self.heap.iter().map(|entry| &entry.handle)
    }

    fn remove_at(&mut self, index: usize) -> Option<Ref<Handle>> {
        if index >= self.heap.len() {
            return None;
        }
        let entry = self.heap.swap_remove(index);
        entry.handle.heap_index.set(None);
        if index < self.heap.len() {
            // The entry from the end may belong above or below the hole.
            let index = self.sift_up(index);
            self.sift_down(index);
        }
        Some(entry.handle)
    }

    fn sift_up(&mut self, mut index: usize) -> usize {
        while index > 0 {
            let parent = (index - 1) / 2;
            if !self.heap[index].before(&self.heap[parent]) {
                break;
            }
            self.heap.swap(index, parent);
            self.note_place(index);
            index = parent;
        }
        self.note_place(index);
        index
    }

    fn sift_down(&mut self, mut index: usize) {
        loop {
            let (left, right) = (2 * index + 1, 2 * index + 2);
            let mut least = index;
            for child in [left, right] {
                if child < self.heap.len() && self.heap[child].before(&self.heap[least]) {
                    least = child;
                }
            }
            if least == index {
                break;
            }
            self.heap.swap(index, least);
            self.note_place(index);
            index = least;
        }
        self.note_place(index);
    }

    fn note_place(&self, index: usize) {
        self.heap[index].handle.heap_index.set(Some(index as u32));
    }
}
