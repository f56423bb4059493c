//! The ways to read from a stream: what each waits for, and what it returns. As asyncio has them.

use std::cell::Cell;

use memchr::memmem;

use super::asyncio_error;
use super::reader::StreamReader;
use crate::py::{Buffer as View, Exc, Obj, Ref, Result, ToObj};

pub enum Read {
    /// Up to so many bytes; all there are for a negative number.
    Some(i64),
    Exactly(i64),
    Line(Search),
    /// A line, for an asynchronous iteration.
    Next(Search),
    Until {
        separator: Obj,
        search: Search,
    },
    /// Nothing, but waits until more has come; whether it has waited.
    More(Cell<bool>),
}

/// Where a search for separators goes on when there is more.
#[derive(Default)]
pub struct Search {
    offset: Cell<usize>,
}

enum Found {
    /// The start of a separator and the end of it.
    At(usize, usize),
    Not,
    /// More than the limit without a separator; so many bytes cannot belong to one.
    TooMuch(usize),
}

impl Search {
    /// Looks for the separator that ends first. `separators` are sorted by length.
    fn run<S: AsRef<[u8]>>(&self, data: &[u8], separators: &[S], limit: usize) -> Found {
        let length = |separator: Option<&S>| separator.map_or(0, |s| s.as_ref().len());
        let (shortest, longest) = (length(separators.first()), length(separators.last()));
        let offset = self.offset.get().min(data.len());
        let unseen = &data[offset..];
        if unseen.len() < shortest {
            return Found::Not;
        }
        let places = separators.iter().filter_map(|separator| {
            let separator = separator.as_ref();
            let start = offset + find(unseen, separator)?;
            Some((start, start + separator.len()))
        });
        if let Some((start, end)) = places.min_by_key(|(_, end)| *end) {
            return Found::At(start, end);
        }
        // The last bytes may be the start of a separator.
        let offset = (data.len() + 1).saturating_sub(longest);
        if offset > limit {
            return Found::TooMuch(offset);
        }
        self.offset.set(offset);
        Found::Not
    }
}

fn find(data: &[u8], separator: &[u8]) -> Option<usize> {
    match separator {
        [byte] => memchr::memchr(*byte, data),
        _ => memmem::find(data, separator),
    }
}

const NEWLINE: [&[u8]; 1] = [b"\n"];

impl Read {
    pub fn name(&self) -> &'static str {
        match self {
            Read::Some(_) => "StreamReader.read",
            Read::Exactly(_) => "StreamReader.readexactly",
            Read::Line(_) => "StreamReader.readline",
            Read::Next(_) => "StreamReader.__anext__",
            Read::Until { .. } => "StreamReader.readuntil",
            Read::More(_) => "StreamReader._wait_for_data",
        }
    }

    /// What asyncio calls the method in the error for a second reader.
    pub fn short_name(&self) -> &'static str {
        match self {
            Read::Some(_) => "read",
            Read::Exactly(_) => "readexactly",
            Read::More(_) => "_wait_for_data",
            _ => "readuntil",
        }
    }

    /// Checks the arguments and the reader before anything is read.
    pub fn begin(&self, reader: &Ref<StreamReader>) -> Result<()> {
        match self {
            Read::Exactly(count) if *count < 0 => {
                let text = "readexactly size can not be less than zero";
                return Err(Exc::value_error(reader.gil(), text));
            }
            Read::Until { separator, .. } => drop(separators(separator)?),
            _ => {}
        }
        reader.raise_exception()
    }

    /// Whether there is something to be said, after data has come, about what is read.
    pub fn is_ready(&self, reader: &StreamReader) -> bool {
        let buffer = reader.buffer();
        let limit = reader.limit();
        match self {
            Read::Some(count) => *count >= 0,
            Read::Exactly(count) => buffer.len() as i64 >= *count,
            Read::Line(search) | Read::Next(search) => {
                !matches!(search.run(buffer.as_slice(), &NEWLINE, limit), Found::Not)
            }
            // The separators are looked at where an error can be raised.
            Read::Until { .. } | Read::More(_) => true,
        }
    }

    /// The result, if what has come is enough for it.
    pub fn attempt(&self, reader: &Ref<StreamReader>) -> Result<Option<Obj>> {
        match self {
            Read::Some(0) | Read::Exactly(0) => b"".to_obj(reader.gil()).map(Some),
            Read::Some(count) if *count < 0 => match reader.eof.get() {
                true => StreamReader::take(reader, usize::MAX).map(Some),
                false => Ok(None),
            },
            Read::Some(count) => match reader.is_empty() && !reader.eof.get() {
                true => Ok(None),
                false => StreamReader::take(reader, *count as usize).map(Some),
            },
            Read::Exactly(count) => match reader.len() as i64 >= *count {
                true => StreamReader::take(reader, *count as usize).map(Some),
                false if reader.eof.get() => Err(incomplete(reader, Some(*count))),
                false => Ok(None),
            },
            Read::More(waited) => Ok(waited.replace(true).then(|| Obj::none(reader.gil()))),
            Read::Line(search) => line(reader, search),
            Read::Next(search) => match line(reader, search)? {
                Some(line) if line.bytes().is_some_and(<[u8]>::is_empty) => {
                    Err(Exc::stop_async_iteration(reader.gil()))
                }
                line => Ok(line),
            },
            Read::Until { separator, search } => {
                let separators = separators(separator)?;
                let found = {
                    let buffer = reader.buffer();
                    search.run(buffer.as_slice(), &separators, reader.limit())
                };
                match found {
                    Found::At(start, end) if start <= reader.limit() => {
                        StreamReader::take(reader, end).map(Some)
                    }
                    Found::At(start, _) => Err(overrun(reader, LONGER, start)),
                    Found::TooMuch(consumed) => Err(overrun(reader, NOT_FOUND, consumed)),
                    Found::Not if reader.eof.get() => Err(incomplete(reader, None)),
                    Found::Not => Ok(None),
                }
            }
        }
    }
}

const LONGER: &str = "Separator is found, but chunk is longer than limit";
const NOT_FOUND: &str = "Separator is not found, and chunk exceed the limit";

/// A line. One that is too long is dropped; without a newline, all there is.
fn line(reader: &Ref<StreamReader>, search: &Search) -> Result<Option<Obj>> {
    let found = {
        let buffer = reader.buffer();
        search.run(buffer.as_slice(), &NEWLINE, reader.limit())
    };
    let (message, dropped) = match found {
        Found::At(start, end) if start <= reader.limit() => {
            return StreamReader::take(reader, end).map(Some);
        }
        Found::At(_, end) => (LONGER, end),
        Found::TooMuch(_) => (NOT_FOUND, usize::MAX),
        Found::Not if reader.eof.get() => return StreamReader::take(reader, usize::MAX).map(Some),
        Found::Not => return Ok(None),
    };
    reader.buffer().skip(dropped);
    StreamReader::maybe_resume(reader)?;
    Err(Exc::value_error(reader.gil(), message))
}

fn incomplete(reader: &Ref<StreamReader>, expected: Option<i64>) -> Exc {
    let gil = reader.gil();
    let partial = reader.buffer().take(gil, usize::MAX);
    match (partial, expected.to_obj(gil)) {
        (Ok(partial), Ok(expected)) => {
            asyncio_error(gil, c"IncompleteReadError", [&partial, &expected])
        }
        (Err(error), _) | (_, Err(error)) => error,
    }
}

fn overrun(reader: &Ref<StreamReader>, message: &str, consumed: usize) -> Exc {
    let gil = reader.gil();
    match (message.to_obj(gil), consumed.to_obj(gil)) {
        (Ok(message), Ok(consumed)) => {
            asyncio_error(gil, c"LimitOverrunError", [&message, &consumed])
        }
        (Err(error), _) | (_, Err(error)) => error,
    }
}

/// One separator, or a tuple of them, sorted by length.
fn separators(given: &Obj) -> Result<Vec<Vec<u8>>> {
    let copy = |separator: &Obj| Ok(View::get(separator)?.as_slice().to_vec());
    let mut separators = if given.is_tuple() {
        given.to_vec()?.iter().map(copy).collect::<Result<Vec<_>>>()?
    } else {
        vec![copy(given)?]
    };
    separators.sort_by_key(Vec::len);
    let wrong = match separators.first() {
        None => "Separator should contain at least one element",
        Some(shortest) if shortest.is_empty() => "Separator should be at least one-byte string",
        Some(_) => return Ok(separators),
    };
    Err(Exc::value_error(given.gil(), wrong))
}
