//! A slab whose keys are never reused: each slot counts its tenants.

use std::fmt;
use std::io;

/// Names a value of one slab, and nothing once that is removed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key {
    pub(super) index: u32,
    pub(super) generation: u32,
}

impl Key {
    /// The number by which the kernel knows the value.
    #[inline]
    pub fn user_data(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    #[inline]
    pub(super) fn from_user_data(user_data: u64) -> Self {
        Key { index: user_data as u32, generation: (user_data >> 32) as u32 }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.index, self.generation)
    }
}

/// Ends the list of free slots. Also keeps the highest indices free for the backends' own use.
const NONE: u32 = 1 << 31;

pub(super) struct Slab<V> {
    slots: Vec<Slot<V>>,
    first_free: u32,
    /// The generation of the first tenant of each slot.
    first_generation: u32,
    len: usize,
}

struct Slot<V> {
    generation: u32,
    content: Content<V>,
}

enum Content<V> {
    Free { next: u32 },
    Used(V),
}

impl<V> Slab<V> {
    pub const fn new(first_generation: u32) -> Self {
        Slab { slots: Vec::new(), first_free: NONE, first_generation, len: 0 }
    }

    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Fails with `ENOMEM` at 2^31 values.
    #[inline]
    pub fn insert(&mut self, value: V) -> io::Result<Key> {
        if let Some(slot) = self.slots.get_mut(self.first_free as usize)
            && let Content::Free { next } = slot.content
        {
            let key = Key { index: self.first_free, generation: slot.generation };
            slot.content = Content::Used(value);
            self.first_free = next;
            self.len += 1;
            return Ok(key);
        }
        self.append(value)
    }

    #[cold]
    fn append(&mut self, value: V) -> io::Result<Key> {
        if self.slots.len() >= NONE as usize {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        let index = self.slots.len() as u32;
        let generation = self.first_generation;
        self.slots.push(Slot { generation, content: Content::Used(value) });
        self.len += 1;
        Ok(Key { index, generation })
    }

    #[inline]
    pub fn get(&self, key: Key) -> Option<&V> {
        match self.slots.get(key.index as usize) {
            Some(Slot { generation, content: Content::Used(value) })
                if *generation == key.generation =>
            {
                Some(value)
            }
            _ => None,
        }
    }

    #[inline]
    pub fn get_mut(&mut self, key: Key) -> Option<&mut V> {
        match self.slots.get_mut(key.index as usize) {
            Some(Slot { generation, content: Content::Used(value) })
                if *generation == key.generation =>
            {
                Some(value)
            }
            _ => None,
        }
    }

    #[cfg(test)]
    pub fn contains(&self, key: Key) -> bool {
        self.get(key).is_some()
    }

    #[inline]
    pub fn remove(&mut self, key: Key) -> Option<V> {
        self.get(key)?;
        let slot = self.slots.get_mut(key.index as usize)?;
        slot.generation = slot.generation.wrapping_add(1);
        let free = Content::Free { next: self.first_free };
        self.first_free = key.index;
        self.len -= 1;
        match std::mem::replace(&mut slot.content, free) {
            Content::Used(value) => Some(value),
            Content::Free { .. } => None,
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = &V> {
        self.slots.iter().filter_map(|slot| match &slot.content {
            Content::Used(value) => Some(value),
            Content::Free { .. } => None,
        })
    }

    pub fn ids(&self) -> impl Iterator<Item = Key> {
        self.slots.iter().zip(0u32..).filter_map(|(slot, index)| match slot.content {
            Content::Used(_) => Some(Key { index, generation: slot.generation }),
            Content::Free { .. } => None,
        })
    }

    pub fn into_entries(self) -> impl Iterator<Item = (Key, V)> {
        self.slots.into_iter().zip(0u32..).filter_map(|(slot, index)| match slot.content {
            Content::Used(value) => Some((Key { index, generation: slot.generation }, value)),
            Content::Free { .. } => None,
        })
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn ids_of_removed_values_stay_stale() {
        let mut slab = Slab::new(0);
        let first = slab.insert("first").unwrap();
        assert_eq!(slab.remove(first), Some("first"));
        let second = slab.insert("second").unwrap();
        assert_eq!(second.index, first.index);
        assert_ne!(second, first);
        assert!(!slab.contains(first));
        assert_eq!(slab.remove(first), None);
        assert_eq!(slab.get(second), Some(&"second"));
        assert_eq!(slab.len(), 1);
    }

    #[test]
    fn free_slots_are_reused_before_new_ones_are_made() {
        let mut slab = Slab::new(0);
        let ids: Vec<Key> = (0..10).map(|n| slab.insert(n).unwrap()).collect();
        for id in &ids[2..7] {
            slab.remove(*id);
        }
        let more: Vec<Key> = (10..15).map(|n| slab.insert(n).unwrap()).collect();
        assert!(more.iter().all(|key| (2..7).contains(&key.index)));
        assert_eq!(slab.insert(15).unwrap().index, 10);
        assert_eq!(slab.iter().count(), slab.len());
        assert_eq!(slab.ids().count(), 11);
        let mut values: Vec<i32> = slab.into_entries().map(|(_, value)| value).collect();
        values.sort_unstable();
        assert_eq!(values, [0, 1, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
    }

    #[test]
    fn user_data_of_the_backends_is_in_no_slab() {
        let slab: Slab<()> = Slab::new(0);
        for user_data in [u64::MAX, u64::MAX - 1, 0] {
            assert!(!slab.contains(Key::from_user_data(user_data)));
        }
        let id = Key { index: 7, generation: u32::MAX };
        assert_eq!(Key::from_user_data(id.user_data()), id);
    }
}
