//! Conversions between Rust values and Python objects.

use std::ffi::{CStr, c_int};
use std::mem::MaybeUninit;

use pyo3_ffi as ffi;

use super::class::{Native, Ref};
use super::error::{Exc, Kind, Result};
use super::object::{Gil, Obj};

/// Values that native methods return.
pub trait ToObj {
    fn to_obj(self, gil: Gil) -> Result<Obj>;
}

impl ToObj for Obj {
    #[inline]
    fn to_obj(self, _: Gil) -> Result<Obj> {
        Ok(self)
    }
}

impl<T: Native> ToObj for Ref<T> {
    #[inline]
    fn to_obj(self, _: Gil) -> Result<Obj> {
        Ok(self.into_obj())
    }
}

impl ToObj for () {
    #[inline]
    fn to_obj(self, gil: Gil) -> Result<Obj> {
        Ok(Obj::none(gil))
    }
}

impl<T: ToObj> ToObj for Option<T> {
    #[inline]
    fn to_obj(self, gil: Gil) -> Result<Obj> {
        match self {
            Some(value) => value.to_obj(gil),
            None => Ok(Obj::none(gil)),
        }
    }
}

impl ToObj for bool {
    #[inline]
    fn to_obj(self, _: Gil) -> Result<Obj> {
        // SAFETY: attached (token); the two objects are immortal.
        unsafe { Ok(Obj::borrowed(if self { ffi::Py_True() } else { ffi::Py_False() })) }
    }
}

impl ToObj for i64 {
    #[inline]
    fn to_obj(self, _: Gil) -> Result<Obj> {
        // SAFETY: attached (token).
        unsafe { Obj::owned(ffi::PyLong_FromLongLong(self)) }
    }
}

impl ToObj for i32 {
    fn to_obj(self, gil: Gil) -> Result<Obj> {
        i64::from(self).to_obj(gil)
    }
}

impl ToObj for u32 {
    fn to_obj(self, gil: Gil) -> Result<Obj> {
        i64::from(self).to_obj(gil)
    }
}

impl ToObj for usize {
    fn to_obj(self, _: Gil) -> Result<Obj> {
        // SAFETY: attached (token).
        unsafe { Obj::owned(ffi::PyLong_FromSize_t(self)) }
    }
}

impl ToObj for f64 {
    #[inline]
    fn to_obj(self, _: Gil) -> Result<Obj> {
        // SAFETY: attached (token).
        unsafe { Obj::owned(ffi::PyFloat_FromDouble(self)) }
    }
}

impl ToObj for &str {
    fn to_obj(self, _: Gil) -> Result<Obj> {
        // SAFETY: attached (token); pointer and length describe valid UTF-8.
        unsafe {
            Obj::owned(ffi::PyUnicode_FromStringAndSize(
                self.as_ptr().cast(),
                self.len() as ffi::Py_ssize_t,
            ))
        }
    }
}

impl ToObj for String {
    fn to_obj(self, gil: Gil) -> Result<Obj> {
        self.as_str().to_obj(gil)
    }
}

/// `bytes` of exactly this content.
impl ToObj for &[u8] {
    #[inline]
    fn to_obj(self, _: Gil) -> Result<Obj> {
        // SAFETY: attached (token); pointer and length describe initialised memory.
        unsafe {
            Obj::owned(ffi::PyBytes_FromStringAndSize(
                self.as_ptr().cast(),
                self.len() as ffi::Py_ssize_t,
            ))
        }
    }
}

// Stable API that pyo3-ffi does not export.
unsafe extern "C" {
    fn _PyBytes_Resize(bytes: *mut *mut ffi::PyObject, size: ffi::Py_ssize_t) -> c_int;
}

impl Obj {
    /// A `bytes` that `fill` writes: it gets room for `size` bytes and returns the beginning of it
    /// that it has written, which is kept. Where it fails, so does this, with its error inside.
    pub fn bytes_filled<E>(
        _: Gil,
        size: usize,
        fill: impl FnOnce(&mut [MaybeUninit<u8>]) -> std::result::Result<&mut [u8], E>,
    ) -> Result<std::result::Result<Obj, E>> {
        // SAFETY: attached (token). The new object is ours alone until it is returned, and has
        // `size` bytes, of which nobody reads those that were not written; resizing takes it over
        // and leaves null where it fails.
        unsafe {
            let made = ffi::PyBytes_FromStringAndSize(std::ptr::null(), size as ffi::Py_ssize_t);
            let made = Obj::owned(made)?;
            let data = ffi::PyBytes_AsString(made.as_ptr()).cast::<MaybeUninit<u8>>();
            let count = match fill(std::slice::from_raw_parts_mut(data, size)) {
                Ok(written) => {
                    assert!(std::ptr::eq(written.as_ptr(), data.cast()), "not the beginning");
                    written.len()
                }
                Err(error) => return Ok(Err(error)),
            };
            let mut raw = made.into_ptr();
            _PyBytes_Resize(&mut raw, count as ffi::Py_ssize_t);
            Obj::owned(raw).map(Ok)
        }
    }

    /// A `bytearray` of this content.
    pub fn bytearray(_: Gil, content: &[u8]) -> Result<Self> {
        let size = content.len() as ffi::Py_ssize_t;
        // SAFETY: attached (token); pointer and length describe initialised memory.
        unsafe { Obj::owned(ffi::PyByteArray_FromStringAndSize(content.as_ptr().cast(), size)) }
    }

    /// `os.fsdecode()` of a path.
    pub fn path(_: Gil, path: &[u8]) -> Result<Self> {
        // SAFETY: attached (token); pointer and length describe initialised memory.
        unsafe {
            Obj::owned(ffi::PyUnicode_DecodeFSDefaultAndSize(
                path.as_ptr().cast(),
                path.len() as ffi::Py_ssize_t,
            ))
        }
    }

    /// The text of a `str`; `TypeError` for other types, `UnicodeEncodeError` for lone surrogates.
    pub fn to_str(&self) -> Result<&str> {
        let mut length = 0;
        // SAFETY: a live object; the text is cached in the object and lives as long as it does.
        unsafe {
            if ffi::PyUnicode_Check(self.as_ptr()) == 0 {
                return Err(Exc::type_error(
                    self.gil(),
                    format!("a str was expected, got {}", self.type_name()),
                ));
            }
            let text = ffi::PyUnicode_AsUTF8AndSize(self.as_ptr(), &mut length);
            if text.is_null() {
                return Err(Exc::fetch(self.gil()));
            }
            let bytes = std::slice::from_raw_parts(text.cast::<u8>(), length as usize);
            std::str::from_utf8(bytes)
                .map_err(|error| Exc::value_error(self.gil(), error.to_string()))
        }
    }

    pub fn is_str(&self) -> bool {
        // SAFETY: a live object.
        unsafe { ffi::PyUnicode_Check(self.as_ptr()) != 0 }
    }

    /// Whether this is the string `name`, first by address, then by content.
    #[inline]
    pub fn is_name(&self, name: &Obj, text: &CStr) -> bool {
        // SAFETY: live objects; the comparison with ASCII cannot fail for a str.
        self.is(name)
            || unsafe {
                ffi::PyUnicode_Check(self.as_ptr()) != 0
                    && ffi::PyUnicode_CompareWithASCIIString(self.as_ptr(), text.as_ptr()) == 0
            }
    }

    pub fn is_int(&self) -> bool {
        // SAFETY: a live object.
        unsafe { ffi::PyLong_Check(self.as_ptr()) != 0 }
    }

    pub fn to_i64(&self) -> Result<i64> {
        // SAFETY: a live object.
        let value = unsafe { ffi::PyLong_AsLongLong(self.as_ptr()) };
        if value == -1 { self.pending().map(|()| value) } else { Ok(value) }
    }

    pub fn to_i32(&self) -> Result<i32> {
        i32::try_from(self.to_i64()?).map_err(|_| {
            Exc::new(self.gil(), Kind::Value, format!("{} is out of range", self.repr()))
        })
    }

    #[inline]
    pub fn to_f64(&self) -> Result<f64> {
        // SAFETY: a live object.
        let value = unsafe { ffi::PyFloat_AsDouble(self.as_ptr()) };
        if value == -1.0 { self.pending().map(|()| value) } else { Ok(value) }
    }

    /// The items of a tuple or any other iterable.
    pub fn to_vec(&self) -> Result<Vec<Obj>> {
        // SAFETY: live objects; PySequence_Tuple gives a new tuple of `size` items.
        unsafe {
            let tuple = Obj::owned(ffi::PySequence_Tuple(self.as_ptr()))?;
            let size = ffi::PyTuple_Size(tuple.as_ptr());
            Ok((0..size)
                .map(|index| Obj::borrowed(ffi::PyTuple_GetItem(tuple.as_ptr(), index)))
                .collect())
        }
    }

    pub fn is_tuple(&self) -> bool {
        // SAFETY: a live object.
        unsafe { ffi::PyTuple_Check(self.as_ptr()) != 0 }
    }

    /// An item of a tuple; `None` beyond its end, and for other types.
    #[inline]
    pub fn tuple_item(&self, index: usize) -> Option<Obj> {
        // SAFETY: a live object; the type and the index are checked.
        unsafe {
            if ffi::PyTuple_Check(self.as_ptr()) == 0
                || index >= ffi::PyTuple_Size(self.as_ptr()) as usize
            {
                return None;
            }
            Some(Obj::borrowed(ffi::PyTuple_GetItem(self.as_ptr(), index as ffi::Py_ssize_t)))
        }
    }

    /// The content of a `bytes` object, which cannot change; `None` for other types.
    #[inline]
    pub fn bytes(&self) -> Option<&[u8]> {
        // SAFETY: the type is checked; a bytes object's storage lives as long as it does.
        unsafe {
            if ffi::PyBytes_Check(self.as_ptr()) == 0 {
                return None;
            }
            let data = ffi::PyBytes_AsString(self.as_ptr()).cast::<u8>();
            Some(std::slice::from_raw_parts(data, ffi::PyBytes_Size(self.as_ptr()) as usize))
        }
    }

    /// Whether this is a `bytes` and of no subclass.
    #[inline]
    pub fn is_exact_bytes(&self) -> bool {
        // SAFETY: a live object.
        unsafe { ffi::PyBytes_CheckExact(self.as_ptr()) != 0 }
    }

    pub fn is_bytearray(&self) -> bool {
        // SAFETY: a live object.
        unsafe { ffi::PyByteArray_Check(self.as_ptr()) != 0 }
    }

    pub fn is_memoryview(&self) -> bool {
        // SAFETY: a live object.
        unsafe { ffi::PyMemoryView_Check(self.as_ptr()) != 0 }
    }

    fn pending(&self) -> Result<()> {
        // SAFETY: attached.
        if unsafe { ffi::PyErr_Occurred() }.is_null() {
            Ok(())
        } else {
            Err(Exc::fetch(self.gil()))
        }
    }
}
