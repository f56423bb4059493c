//! The only code that touches io_uring. Knows nothing of Python.
