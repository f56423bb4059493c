//! The buffer protocol: contiguous bytes of another object.

use std::mem::MaybeUninit;

use pyo3_ffi as ffi;

use super::error::Result;
use super::object::Obj;

/// A read-only view of an object's bytes. The exporter is locked against resizing while it lives.
pub struct Buffer(ffi::Py_buffer);

impl Buffer {
    /// `BufferError` where the bytes are not contiguous, `TypeError` where there are none.
    pub fn get(obj: &Obj) -> Result<Self> {
        fill(obj, ffi::PyBUF_SIMPLE).map(Buffer)
    }

    pub fn as_slice(&self) -> &[u8] {
        if self.0.len == 0 {
            return &[];
        }
        // SAFETY: the view describes `len` bytes that stay put until it is released.
        unsafe { std::slice::from_raw_parts(self.0.buf.cast(), self.0.len as usize) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: filled by PyObject_GetBuffer and released once.
        unsafe { ffi::PyBuffer_Release(&mut self.0) };
    }
}

/// A writable view of an object's bytes.
pub struct WritableBuffer(ffi::Py_buffer);

impl WritableBuffer {
    /// `BufferError` where the object is read-only or not contiguous.
    pub fn get(obj: &Obj) -> Result<Self> {
        fill(obj, ffi::PyBUF_WRITABLE).map(WritableBuffer)
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        if self.0.len == 0 {
            return &mut [];
        }
        // SAFETY: writable and contiguous by request; only one slice of it exists in Rust, and
        // Python code, which could see the same bytes, does not run while it is borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.0.buf.cast(), self.0.len as usize) }
    }
}

impl Drop for WritableBuffer {
    fn drop(&mut self) {
        // SAFETY: filled by PyObject_GetBuffer and released once.
        unsafe { ffi::PyBuffer_Release(&mut self.0) };
    }
}

fn fill(obj: &Obj, flags: std::ffi::c_int) -> Result<ffi::Py_buffer> {
    let mut view = MaybeUninit::<ffi::Py_buffer>::uninit();
    // SAFETY: a live object; the view is initialised where the call succeeds. Moving a Py_buffer
    // is allowed for PyBUF_SIMPLE and PyBUF_WRITABLE: no field points into the struct then.
    unsafe {
        obj.check(ffi::PyObject_GetBuffer(obj.as_ptr(), view.as_mut_ptr(), flags))?;
        Ok(view.assume_init())
    }
}
