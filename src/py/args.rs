//! Arguments of native methods.

use pyo3_ffi as ffi;

use super::error::{Exc, Result};
use super::object::{Gil, Obj};

/// The arguments of one call, borrowed from the caller.
pub struct Args<'a> {
    pub gil: Gil,
    pub positional: &'a [Obj],
    /// The tuple of keyword names, where there are any.
    pub names: Option<&'a Obj>,
    /// The values of the keywords, in the order of `names`.
    pub values: &'a [Obj],
}

/// What a method accepts, for [`Args::bind`].
pub struct Signature<const N: usize> {
    pub function: &'static str,
    pub names: [&'static str; N],
    /// How many of the first parameters must be given.
    pub required: usize,
    /// How many of the first parameters may be given by position.
    pub positional: usize,
}

impl Signature<1> {
    /// A function of one argument, `function(name)`.
    pub const fn one(function: &'static str, name: &'static str) -> Self {
        Signature { function, names: [name], required: 1, positional: 1 }
    }
}

impl<'a> Args<'a> {
    /// # Safety
    /// The arguments of a METH_FASTCALL|METH_KEYWORDS call, alive for `'a`.
    #[inline]
    pub(super) unsafe fn from_vectorcall(
        gil: Gil,
        args: &'a *const *mut ffi::PyObject,
        count: ffi::Py_ssize_t,
        names: &'a *mut ffi::PyObject,
    ) -> Self {
        // SAFETY: `args` holds `count` positional arguments followed by one value for each name.
        // `Obj` is a transparent pointer, so the array can be viewed as a slice of `Obj`.
        unsafe {
            let keywords =
                if names.is_null() { 0 } else { ffi::PyTuple_Size(*names).max(0) as usize };
            let count = count as usize;
            let all: &[Obj] = if count + keywords == 0 {
                &[]
            } else {
                std::slice::from_raw_parts((*args).cast(), count + keywords)
            };
            let (positional, values) = all.split_at(count);
            let names = if names.is_null() { None } else { Some(Obj::view(names)) };
            Args { gil, positional, names, values }
        }
    }

    /// The names of the keywords given.
    pub fn keyword_names(&self) -> impl Iterator<Item = Obj> {
        let names = self.names;
        (0..self.values.len()).filter_map(move |index| names?.tuple_item(index))
    }

    /// The keywords given, each with its value.
    pub fn keywords(&self) -> Result<Vec<(Obj, &'a Obj)>> {
        match self.names {
            Some(names) => Ok(names.to_vec()?.into_iter().zip(self.values).collect()),
            None => Ok(Vec::new()),
        }
    }

    /// The value of the only keyword that the function takes; the fast path of `call_soon`.
    #[inline]
    pub fn only_keyword(
        &self,
        function: &str,
        name: &Obj,
        text: &std::ffi::CStr,
    ) -> Result<Option<&'a Obj>> {
        let Some(names) = self.names else { return Ok(None) };
        if let [value] = self.values {
            // SAFETY: `names` is a tuple with one string for each value.
            let given = unsafe { Obj::borrowed(ffi::PyTuple_GetItem(names.as_ptr(), 0)) };
            if given.is_name(name, text) {
                return Ok(Some(value));
            }
        }
        let known = text.to_string_lossy();
        for (given, _) in self.keywords()? {
            if !given.is_name(name, text) {
                let given = given.repr();
                return Err(self.type_error(format!(
                    "{function}() got an unexpected keyword argument {given} (it takes '{known}')"
                )));
            }
        }
        Ok(None)
    }

    /// Sorts the arguments into the parameters of `signature`; an omitted one is `None`.
    pub fn bind<const N: usize>(&self, signature: &Signature<N>) -> Result<[Option<&'a Obj>; N]> {
        let Signature { function, names, required, positional } = signature;
        if self.positional.len() > *positional {
            let given = self.positional.len();
            return Err(self.type_error(format!(
                "{function}() takes at most {positional} positional arguments ({given} given)"
            )));
        }
        let mut bound = [None; N];
        for (slot, value) in bound.iter_mut().zip(self.positional) {
            *slot = Some(value);
        }
        for (name, value) in self.keywords()? {
            let text = name.to_str()?;
            let Some(index) = names.iter().position(|known| *known == text) else {
                return Err(self.type_error(format!(
                    "{function}() got an unexpected keyword argument '{text}'"
                )));
            };
            if bound[index].replace(value).is_some() {
                return Err(self.type_error(format!(
                    "{function}() got multiple values for argument '{text}'"
                )));
            }
        }
        if let Some(index) = bound.iter().take(*required).position(Option::is_none) {
            return Err(self.type_error(format!(
                "{function}() missing required argument: '{}'",
                names[index]
            )));
        }
        Ok(bound)
    }

    fn type_error(&self, message: String) -> Exc {
        Exc::type_error(self.gil, message)
    }
}
